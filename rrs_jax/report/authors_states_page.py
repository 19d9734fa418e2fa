"""The page of the authors' states: figure 2 before training, and what was measured."""

import html

from rrs_jax.report.authors_state_files import AuthorsStates
from rrs_jax.report.plots import cloud
from rrs_jax.report.separation import Figure2

Rows = list[tuple[str, ...]]


def short(value: float | None) -> str:
    """Writes four digits, or "none"."""
    return "none" if value is None else f"{value:.4g}"


def page(states: AuthorsStates, rows: Rows, categories: Rows, figure: Figure2) -> str:
    """Returns one HTML page without anything from elsewhere."""
    numbers = figure.numbers[0]
    caption = (
        "Both questions of every pair under t, before any training. PCA shows"
        f" {100 * figure.explained:.0f} % of the variance. As on a run's page: silhouette"
        f" {short(numbers['silhouette'])}, probe (logistic regression) {short(numbers['probe'])} %,"
        f" distance of the means {short(numbers['distance'])}."
    )
    panels = "".join(
        f"<figure>{cloud(points[0], figure.labels, title)}<figcaption>{title}</figcaption></figure>"
        for title, points in (("t-SNE", figure.tsne), ("PCA", figure.pca))
    )
    panels = f"<div class='panels'>{panels}</div><p>{html.escape(caption)}</p>"
    remarks = "".join(f"<p>{html.escape(remark)}.</p>" for remark in states.remarks)
    return PAGE.format(
        facts=_html_table(rows),
        categories=_html_table(categories, header=True),
        panels=panels,
        remarks=remarks,
    )


PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Qwen2.5-Omni-7B: harmful questions and their rewrites</title>
<style>
:root {{ color-scheme: light dark; --harmful: #c43c35; --benign: #2b6cb0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --harmful: #f0776f; --benign: #6fb1ef; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; }}
tr {{ border-top: 1px solid #8884; }} td + td, th + th {{ text-align: right; }}
.panels {{ display: flex; flex-wrap: wrap; gap: 1rem; }} figure {{ margin: 0; flex: 1 1 20rem; }}
svg {{ border: 1px solid #8884; }} figcaption {{ text-align: center; }}
.points {{ fill: none; stroke: currentColor; stroke-width: 18; stroke-linecap: round; }}
.harmful {{ color: var(--harmful); }} .benign {{ color: var(--benign); }}
</style>
<h1>Qwen2.5-Omni-7B: harmful questions and their rewrites</h1>
<p>States that the authors of the paper published, read without the model's weights.
<b class="harmful">Harmful questions</b> and their <b class="benign">rewrites</b>.</p>
{panels}{remarks}{facts}
<h2>By category, under t</h2>
{categories}
</html>
"""


def _html_table(rows: Rows, header: bool = False) -> str:
    written = []
    for place, row in enumerate(rows):
        tag = "th" if header and place == 0 else "td"
        written.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<table>{''.join(written)}</table>"
