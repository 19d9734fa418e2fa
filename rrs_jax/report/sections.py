"""The sections of the report page, each from the results of runs to HTML; empty where there is nothing."""

import html
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.evaluate.deployment import FILE
from rrs_jax.evaluate.deployment import deployment as measure_deployment
from rrs_jax.files import read_jsonl
from rrs_jax.report import figures, training_figures
from rrs_jax.report.deployment import deployment_tables
from rrs_jax.report.details import details as all_details
from rrs_jax.report.marks import marks_of, names_of
from rrs_jax.report.paper_tables import paper_tables
from rrs_jax.report.plots import by_label
from rrs_jax.report.results import FinishedRun, Recipe, Results, read_paper
from rrs_jax.report.samples import choose_samples, html_samples
from rrs_jax.report.separation import Figure2
from rrs_jax.report.separation import figures as all_figures
from rrs_jax.report.summaries import MODES, interval_text, rate_name, read_summaries
from rrs_jax.report.table import notes
from rrs_jax.report.table import text_table as rates_table
from rrs_jax.report.table_formats import html_table
from rrs_jax.web.page import Html

MOST_CLOUDS = 10  # runs whose figure 2 stands on a sweep's page; each run's own page has its own
MOST_CHARTS = 3  # of one kind that are not folded away


def tables(results: Results, folders: Sequence[str | Path]) -> str:
    """Shows the paper's tables and all rates, those of several seeds with their spread.

    A table of one row is left out where another one has its figures.
    """
    evaluated = [path for path in folders if list(Path(path).glob("eval/*/summary.json"))]
    if not evaluated:
        return ""
    found, marks = paper_tables(results), marks_of(results)
    found = [table for table in found if len(table.rows) > 1] or found[:1]
    parts = [html_table(table, marks) for table in found]
    if found:
        names = [f"table{table.number}.{kind}" for table in found for kind in ("csv", "tex")]
        files = " ".join(f'<a href="{name}">{name}</a>' for name in names)
        parts.append(f"<p class='files'>{files}</p>")
    parts.append(f"<p>{html.escape(' '.join(_said_of_tables(results)))}</p>")
    seeds = [recipe for recipe in results.everything if recipe.summary and "seeds" in recipe.summary]
    if seeds:
        parts.append(figures.details("Mean over seeds, with Student's 95 % interval", _seeds(seeds, results)))
    summaries = read_summaries(evaluated, vanilla_once=True)
    text = rates_table(evaluated, vanilla_once=True).split("\n\n")[0]
    parts.append(figures.details("All evaluations", f"<pre>{html.escape(text)}</pre>"))
    parts.append(
        figures.details(
            "Judges, paired tests, categories",
            f"<pre>{html.escape(all_details(evaluated, vanilla_once=True))}</pre>",
        )
    )
    notes_shown = "".join(f"<li>{html.escape(note)}</li>" for note in notes(summaries))
    parts.append(figures.details("Notes", f"<ul>{notes_shown}</ul>"))
    return "".join(parts)


def _said_of_tables(results: Results) -> list[str]:
    said = [
        "Percent, in brackets the 95 % interval over questions; NSI in points. Bold: lowest rate, underlined:"
        " highest NSI, the vanilla model apart. Below a rule: what the paper does not have."
    ]
    if results.paper:
        return [*said, f"In italics the paper's figures for {results.paper_title}. {read_paper()['source']}"]
    return [
        *said,
        "model.path names none of the paper's three models, so that no figure of the paper stands beside"
        " these.",
    ]


def _seeds(recipes: Sequence[Recipe], results: Results) -> str:
    """Shows mean and Student's interval over seeds, which say what another seed may give."""
    names, rate = names_of(results), rate_name([recipe.summary for recipe in recipes])
    modes = (f"{rate} {title}" for title in MODES.values())
    rows: list[Sequence[str]] = [("Strategy", *modes, "ORR", "ORR borderline", "Avg. NSI")]
    for recipe in recipes:
        seeds = recipe.summary["seeds"]
        blocks = [
            *(seeds["modes"].get(mode) for mode in MODES),
            seeds["orr"],
            seeds["borderline_orr"],
            seeds["nsi_average"],
        ]
        rows.append((names[recipe.id], *(_over_seeds(block) for block in blocks)))
    return figures.table_of(rows)


def _over_seeds(block: dict | None) -> Html:
    if not block:
        return Html("N/A")
    interval = f"<small>{interval_text(block['ci95'])}</small>" if block["ci95"] else ""
    return Html(f"{block['mean']:.1f}{interval}")


def deployment(results: Results) -> str:
    """Shows what a deployer asks, of the seeds of a recipe together."""
    measured = []
    for recipe in results.recipes:
        after = [folder for run in recipe.runs if (folder := run.evaluation(run.strategy))]
        if after and all((folder / FILE).is_file() for folder in after):
            rest = after[0].name.removeprefix(recipe.runs[0].strategy)  # the name of other questions
            before = [folder.with_name(f"vanilla{rest}") for folder in after]
            measured.append((recipe.title, measure_deployment(before, after)))
    return "".join(
        f"<h3>{html.escape(title)}</h3>{figures.table_of(rows)}"
        for title, rows in deployment_tables(measured)
    )


def figure_2(results: Results, questions: list[str]) -> str:
    """Shows figure 2 of the runs; extends `questions`, on which the panels' points have their places."""
    recipes = [
        recipe
        for recipe in results.recipes
        if list(recipe.runs[0].path.glob("epochs/*/representations.safetensors"))
    ]
    if not recipes:
        return ""
    try:
        made = all_figures([recipe.runs[0].path for recipe in recipes])
    except UserError as error:
        return f"<p class='absent'>{html.escape(str(error))}</p>"
    first, *others = _main_first(results, recipes)[:MOST_CLOUDS]
    names = names_of(results)
    said = (
        "Figure 2 of the paper: each dot is the representation of an evaluation question, spoken under the"
        " prompt t. All epochs are embedded together, so that the panels of a run have common coordinates."
        " The numbers below are taken in the whole space, of harmful against benign questions; the linear"
        " probe is cross-validated with the questions of a pair on the same side."
    )
    everyday = ["everyday"] if any("everyday" in figure.labels for figure in made.values()) else []
    parts = [
        f"<p>{html.escape(said)}</p>",
        figures.legend([(label, label) for label in ("harmful", "benign", "borderline", *everyday)]),
        f"<h3>{names[first.id]}</h3>",
        _located(made[first.runs[0].path], first, questions, large=True),
    ]
    parts += [
        figures.details(names[recipe.id], _located(made[recipe.runs[0].path], recipe, questions))
        for recipe in others
    ]
    if len(recipes) > 1:
        entries = [(names[recipe.id], made[recipe.runs[0].path]) for recipe in recipes]
        parts.append("<h3>Separation of all runs</h3>" + _separations(entries))
    return "".join(parts)


def _separations(entries: Sequence[tuple[str, Figure2]]) -> str:
    rows = [("Run", "Epochs", "Silhouette", "Linear probe, % right", "Distance of means, in spreads")]
    for title, figure in entries:
        first, last = min(figure.numbers), max(figure.numbers)
        pairs = [
            [figure.numbers[epoch][field] for epoch in (first, last)]
            for field in ("silhouette", "probe", "distance")
        ]
        shown = [
            " → ".join(figures.shown(value, digits) for value in pair)
            for pair, digits in zip(pairs, (3, 1, 2), strict=True)
        ]
        rows.append((title, f"{first} → {last}", *shown))
    return figures.table_of(rows)


def _questions_of(run: FinishedRun, figure: Figure2) -> list[str]:
    manifest = run.path / "data" / "eval" / "manifest.jsonl"
    rows = {row["id"]: row["question"] for row in (read_jsonl(manifest) if manifest.is_file() else [])}
    return [f"{label}: {rows.get(name, name)}" for name, label in zip(figure.ids, figure.labels, strict=True)]


def _located(figure: Figure2, recipe: Recipe, questions: list[str], large: bool = False) -> str:
    """Wraps a run's figure 2 in an element that says which questions its points are.

    `data-start` is the place on the page's list at which the run's questions begin. `data-LABEL` has, for
    that label's points in the order in which they are drawn, their places counted from there. Questions that
    are not on the list yet are added.
    """
    own = _questions_of(recipe.runs[0], figure)
    start = next((i for i in range(len(questions)) if questions[i : i + len(own)] == own), None)
    if start is None:
        start = len(questions)
        questions += own
    members = by_label(figure.labels).items()
    places = " ".join(f'data-{label}="{" ".join(map(str, own))}"' for label, own in members)
    panels = figures.panels(figure, recipe.title, large)
    return f'<div class="located" data-start="{start}" {places}>{panels}</div>'


def by_epoch(results: Results) -> str:
    """Shows the rates after each epoch that was evaluated."""
    recipes = _main_first(results, [recipe for recipe in results.recipes if recipe.summary])
    said = "Bands are 95 % intervals over questions; of several seeds the first one is shown."
    names = names_of(results)
    return _charts(said, [figures.rates_by_epoch(recipe, results, names[recipe.id]) for recipe in recipes])


def losses(results: Results) -> str:
    """Shows the losses of every run."""
    said = (
        "Mean loss of a harmful and of a benign question in a step, and the penalty; each run has its own"
        " scale."
    )
    names = names_of(results)
    return _charts(
        said,
        [
            training_figures.loss_curves(recipe.runs[0], recipe.title, names[recipe.id])
            for recipe in _main_first(results, results.recipes)
        ],
    )


def _main_first(results: Results, recipes: Sequence[Recipe]) -> list[Recipe]:
    return sorted(recipes, key=lambda recipe: recipe is not results.main)


def _charts(said: str, drawn: Sequence[str | None]) -> str:
    """Shows the first few charts side by side and folds the others away.

    None stands for a run without numbers for the chart.
    """
    drawn = [chart for chart in drawn if chart]
    if not drawn:
        return ""
    first, others = (
        f"<div class='row'>{''.join(part)}</div>" for part in (drawn[:MOST_CHARTS], drawn[MOST_CHARTS:])
    )
    return f"<p>{said}</p>{first}" + (figures.details("Other runs", others) if drawn[MOST_CHARTS:] else "")


def samples(results: Results) -> str:
    """Shows questions with their clips and answers."""
    chosen = choose_samples(results)
    if not chosen:
        return ""
    said = (
        "Of each set, questions whose verdict changed with training in turns with ones whose did not. First"
        " answers; the verdicts are the judge's. Clips and answers are cut where they are long."
    )
    return f"<p>{html.escape(said)}</p>{html_samples(chosen)}"
