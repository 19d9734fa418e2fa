"""The report page's sections on how its runs were made: their configs, machines and versions."""

import html
import re
from collections import Counter
from collections.abc import Sequence

from rrs_jax.config import FIELDS
from rrs_jax.errors import scrub
from rrs_jax.report import figures
from rrs_jax.report.results import FinishedRun, Recipe, Results
from rrs_jax.web.page import Html

MOST_ROWS = 8  # runs that are not folded away


def config(results: Results) -> str:
    """Shows the configs: of one run what differs from the defaults, of several what differs between them."""
    recipes = list(
        {recipe.runs[0].path: recipe for recipe in (*results.recipes, *results.everything)}.values()
    )
    configs = [recipe.config for recipe in recipes]
    names = list(
        dict.fromkeys(name for config in configs for name in config if name not in ("run_dir", "seed"))
    )
    differing = [name for name in names if len({_value(config.get(name)) for config in configs}) > 1]
    parts = []
    if differing:
        rows: list[Sequence[str]] = [("Field", "Most runs", "Others")]
        rows += [(_breakable(name), *_differences(name, recipes)) for name in differing]
        parts.append("<h3>Differences between runs</h3>" + figures.table_of(rows, "text"))
    common = [
        (_breakable(name), _breakable(_value(configs[0].get(name))))
        for name in names
        if name not in differing
        and (name not in FIELDS or _value(configs[0].get(name)) != _value(FIELDS[name].default))
    ]
    if common:
        parts.append(
            "<h3>Other values than the defaults</h3>"
            + figures.table_of([("Field", "Value"), *common], "text")
        )
    return "".join(parts)


def _differences(name: str, recipes: Sequence[Recipe]) -> tuple[Html, Html]:
    """Returns the value that most recipes have, and which others have which."""
    values = {recipe.name: _value(recipe.config.get(name)) for recipe in recipes}
    (usual, number), *_ = Counter(values.values()).most_common(1)
    if number == 1 and len(recipes) > 1:
        usual = "–"
    others: dict[str, list[str]] = {}
    for recipe, value in values.items():
        if value not in (usual, recipe):  # a run called by its strategy says nothing twice
            others.setdefault(value, []).append(recipe)
    said = "; ".join(
        f"<b>{_breakable(value)}</b> in {_breakable(', '.join(own))}" for value, own in others.items()
    )
    return _breakable(usual), Html(said)


def _breakable(text: str) -> Html:
    """Returns the text with places behind dots, slashes and commas where a line may end."""
    return Html(re.sub(r"([./,=])(?=\w)", r"\1<wbr>", html.escape(text)))


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else scrub(str(value))


def made(results: Results) -> str:
    """Shows where, when and with which versions each run was made; what all runs have alike in a sentence."""
    runs = list({run.path: run for recipe in results.everything for run in recipe.runs}.values())
    columns = {
        "Seed": [str(run.config.get("seed")) for run in runs],
        "Started": [str(_last(run).get("started", "–"))[:16].replace("T", " ") for run in runs],
        "Commit": [str(_last(run).get("commit") or "–")[:12] for run in runs],
        "Device": [_device(run) for run in runs],
    }
    alike = {name: values[0] for name, values in columns.items() if len(runs) > 1 and len(set(values)) == 1}
    columns = {name: values for name, values in columns.items() if name not in alike}
    columns["Seconds of each stage"] = [
        ", ".join(f"{name} {seconds:.0f}" for name, seconds in run.seconds.items()) for run in runs
    ]
    rows = [("Run", *columns)]
    rows += list(zip([_breakable(run.name) for run in runs], *columns.values(), strict=True))
    table = figures.table_of(rows, "text")
    if len(runs) > MOST_ROWS:
        table = figures.details(f"All {len(runs)} runs", table)
    versions: dict[str, str] = {}
    for run in runs:
        versions |= _last(run).get("versions", {})
    said = [f"{name.lower()} {value}" for name, value in alike.items()]
    sentences = [
        f"All runs: {', '.join(said)}." if said else "",
        ", ".join(f"{n} {v}" for n, v in versions.items()),
    ]
    return "".join(f"<p>{html.escape(text)}</p>" for text in sentences if text) + table


def _last(run: FinishedRun) -> dict:
    """Returns the run's last session."""
    return run.sessions[-1] if run.sessions else {}


def _device(run: FinishedRun) -> str:
    device = _last(run).get("device", {})
    return f"{device.get('count', '–')} {device.get('kind', '')}".strip()
