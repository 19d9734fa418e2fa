"""The top of the report page: its title, what was run, and the figures of the main strategy."""

import html
from pathlib import Path

from rrs_jax.report.marks import names_of
from rrs_jax.report.results import Recipe, Results
from rrs_jax.report.summaries import MODES, interval_text, is_compliance, rate_name

PAPER = "rrs"  # the row of the paper's method
PROJECT = "RRS-JAX"
VERDICTS = {"better": "lower", "worse": "higher", "unclear": "intervals overlap"}


def title_of(results: Results, name: str) -> str:
    """Returns the browser's title: name of the run or sweep, model, date, project."""
    return " · ".join(part for part in (name, _model(results), _date(results), PROJECT) if part)


def head(results: Results, name: str) -> str:
    """Shows project, date, name, model, and what was asked."""
    number = len({run.path for recipe in results.everything for run in recipe.runs})
    said = f"report of {number} run{'s' if number > 1 else ''}" if number else "report"
    date = _date(results)
    line = f"<b>{PROJECT}</b> · {said}" + (f" · {html.escape(date)}" if date else "")
    model = _model(results)
    heading = f"{name}: {model}" if model else name
    return f"<p class='project'>{line}</p><h1>{html.escape(heading)}</h1>{_facts(results)}"


def key_figures(results: Results) -> str:
    """Shows the vanilla model beside the main recipe, in tiles."""
    before, after = results.vanilla, results.main
    if before is None or after is None:
        return "" if before or after else "<p>No run is evaluated yet.</p>"
    role = "The paper's method" if after.key == PAPER else "Strategy"
    flag = f"<code>--config.strategy={html.escape(after.runs[0].strategy)}</code>"
    said = (
        "Vanilla → trained, percent of answers, in brackets the 95 % interval; lower is better. Grey where"
        " the intervals overlap."
    )
    if is_compliance(after.summary):
        said += (
            " The judge sees refusals alone: compliance is the share of answers that are no refusals, an"
            " upper bound of ASR."
        )
    modes = [(block, after.summary["modes"].get(mode)) for mode, block in before.summary["modes"].items()]
    judged = [verdict(old, new, "asr") for old, new in modes if _are_judged(old, new, "asr")]
    if judged and "better" not in judged:
        said += " In no mode are fewer harmful questions answered beyond the intervals."
    tiles = "".join([*_rate_tiles(before, after), _nsi_tile(after)])
    return (
        f"<p class='leading'>{role}: {names_of(results)[after.id]} {flag}</p>"
        f"<p>{html.escape(said)}</p><div class='tiles'>{tiles}</div>"
    )


def _rate_tiles(before: Recipe, after: Recipe) -> list[str]:
    rate = rate_name([before.summary, after.summary])
    pairs = [
        (f"{rate} {title}", before.summary["modes"].get(mode), after.summary["modes"].get(mode), "asr")
        for mode, title in MODES.items()
    ]
    pairs += [
        ("ORR benign", before.summary["orr"], after.summary["orr"], "rate"),
        ("ORR borderline", before.summary["borderline_orr"], after.summary["borderline_orr"], "rate"),
        ("ORR everyday", before.summary.get("everyday_orr"), after.summary.get("everyday_orr"), "rate"),
    ]
    return [
        _tile(
            verdict(old, new, field),
            name,
            f"{old[field]:.1f} → {new[field]:.1f}",
            f"{interval_text(old['ci95'])} → {interval_text(new['ci95'])}",
        )
        for name, old, new, field in pairs
        if _are_judged(old, new, field)
    ]


def _are_judged(old: dict | None, new: dict | None, field: str) -> bool:
    """Returns True where both summaries have the rate."""
    return bool(old and new) and old[field] is not None and new[field] is not None


def _nsi_tile(after: Recipe) -> str:
    """Shows the average NSI, which has an interval over several seeds alone."""
    nsi = after.summary["nsi"]
    if nsi is None or nsi.get("average") is None:
        return ""
    seeds = (after.summary.get("seeds") or {}).get("nsi_average") or {}
    interval = f" Over seeds {interval_text(seeds['ci95'])}." if seeds.get("ci95") else ""
    figure = f"{nsi['average']:+.1f}".replace("-", "−")
    return _tile("nsi", "NSI, average", figure, f"points, higher is better.{interval}")


def _tile(kind: str, name: str, figure: str, below: str) -> str:
    said = f"<i>{VERDICTS[kind]}</i>" if kind in VERDICTS else ""
    return (
        f"<div class='tile {kind}'><span>{html.escape(name)}</span><b>{html.escape(figure)}</b>"
        f"<small>{html.escape(below)}</small>{said}</div>"
    )


def verdict(old: dict, new: dict, field: str) -> str:
    """Returns better or worse for a rate that is to be low, and unclear where the intervals overlap."""
    (old_low, old_high), (new_low, new_high) = (block["ci95"] or [block[field]] * 2 for block in (old, new))
    if new_high < old_low:
        return "better"
    return "worse" if new_low > old_high else "unclear"


def _facts(results: Results) -> str:
    """Shows what was asked, in a line of facts."""
    recipes = results.everything or list(results.recipes)
    if not recipes:
        return ""
    facts = [] if len(recipes) > 2 else [f"strategy {recipes[-1].config['strategy']}"]
    summary = next((recipe.summary for recipe in recipes if recipe.summary), None)
    if summary:
        block = next((block for block in summary["modes"].values() if block), None)
        sets = {
            "harmful": block,
            "benign": summary["orr"],
            "borderline": summary["borderline_orr"],
            "everyday": summary.get("everyday_orr"),
        }
        facts += [f"{entry['queries']} {name} questions" for name, entry in sets.items() if entry]
        facts += [
            f"{summary['samples']} answer{'s' if summary['samples'] > 1 else ''} each",
            f"judge {summary['judge']}",
        ]
    return "<p class='facts'>" + "".join(f"<span>{html.escape(fact)}</span>" for fact in facts) + "</p>"


def _model(results: Results) -> str:
    """Returns the model's name, the last part of its path; of several models all names."""
    paths = [str(run.config["model.path"]) for recipe in results.everything for run in recipe.runs]
    return ", ".join(dict.fromkeys(Path(path).name for path in paths))


def _date(results: Results) -> str:
    """Returns the day on which the last session of any run began; "" where no run says it."""
    runs = [run for recipe in results.everything for run in recipe.runs]
    return max((str(session.get("started", "")) for run in runs for session in run.sessions), default="")[:10]
