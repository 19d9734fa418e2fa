"""The paper's tables as HTML, Markdown, CSV and LaTeX."""

import csv
import html
import io
from collections.abc import Mapping

from rrs_jax.report.marks import Mark
from rrs_jax.report.paper_tables import Cell, Column, Table
from rrs_jax.report.summaries import interval_text
from rrs_jax.report.table import markdown_rows
from rrs_jax.web.text import csv_cell, one_line

LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "①": r"\textcircled{1}",
        "②": r"\textcircled{2}",
        "③": r"\textcircled{3}",
        "④": r"\textcircled{4}",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "–": "--",
        "≈": r"$\approx$",
        "−": r"$-$",
    }
)


def _number(column: Column, value: float) -> str:
    return f"{value:{'+' if column.signed else ''}.{column.decimals}f}".replace("-", "−")


def html_table(table: Table, marks: Mapping[tuple, Mark]) -> str:
    """Returns a `<table>` in the page's classes; everything from outside is escaped.

    `marks` are the recipes' marks by their ids, which stand before the rows' titles.
    """
    groups: list[tuple[str, int]] = []
    for column in table.columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    over = "".join(
        f'<th scope="colgroup" colspan="{span}">{html.escape(group)}</th>' for group, span in groups
    )
    under = "".join(f'<th scope="col">{html.escape(column.title)}</th>' for column in table.columns)
    body = []
    for place, ((title, cells), recipe) in enumerate(zip(table.rows, table.recipes, strict=True)):
        beyond = ' class="beyond"' if table.beyond and place == len(table.rows) - table.beyond else ""
        shown = marks[recipe.id].swatch(recipe.label if title == recipe.title else title)
        shown = f"<b>{shown}</b>" if title in table.selected else shown
        inner = "".join(_html_cell(column, cell) for column, cell in zip(table.columns, cells, strict=True))
        body.append(f'<tr{beyond}><th scope="row">{shown}</th>{inner}</tr>')
    return (
        f'<p class="caption" id="caption{table.number}"><b>Table {table.number}.</b>'
        f" {html.escape(table.caption)}</p>"
        f'<div class="wide"><table id="table{table.number}" aria-labelledby="caption{table.number}">'
        '<thead><tr><th rowspan="2"'
        f' scope="col">{html.escape(table.head)}</th>{over}</tr><tr>{under}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _html_cell(column: Column, cell: Cell) -> str:
    if cell.value is None:
        shown = f'<span class="absent">{cell.absent}</span>'
    else:
        shown = _number(column, cell.value)
        if cell.best:
            shown = f"<u>{shown}</u>" if column.signed else f"<b>{shown}</b>"
    interval = f"<small>{interval_text(cell.ci95)}</small>" if cell.ci95 else ""
    paper = (
        ""
        if cell.paper is None
        else f'<small class="paper" title="the paper\'s">{_paper(column, cell)}</small>'
    )
    return f"<td>{shown}{interval}{paper}</td>"


def _paper(column: Column, cell: Cell) -> str:
    return f"paper {cell.paper:{'+' if column.signed else ''}.2f}".replace("-", "−")


def markdown_table(table: Table) -> str:
    """Returns a table in GitHub's Markdown under its caption."""
    header = [table.head, *(f"{column.group} {column.title}" for column in table.columns)]
    rows = [header]
    for title, cells in table.rows:
        row = [f"**{title}**" if title in table.selected else title]
        for column, cell in zip(table.columns, cells, strict=True):
            shown = cell.absent if cell.value is None else _number(column, cell.value)
            shown = f"**{shown}**" if cell.best else shown
            row.append(
                " ".join(
                    part
                    for part in (
                        shown,
                        interval_text(cell.ci95),
                        f"({_paper(column, cell)})" if cell.paper is not None else "",
                    )
                    if part
                )
            )
        rows.append(row)
    caption = f"**Table {table.number}.** {table.caption}"
    return caption + "\n\n" + "\n".join(markdown_rows(rows)) + "\n"


def csv_table(table: Table) -> str:
    """Returns a table as CSV, a row a strategy.

    Each column gives the value, the interval's ends, and the paper's number.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [f"{column.name}{part}" for column in table.columns for part in ("", "_low", "_high", "_paper")]
    writer.writerow([csv_cell(name) for name in (table.head.lower(), *names)])
    for title, cells in table.rows:
        values = [csv_cell(one_line(title))]
        for cell in cells:
            values += [cell.value, *(cell.ci95 or (None, None)), cell.paper]
        writer.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def latex_table(table: Table) -> str:
    r"""Returns a `table*` that needs \usepackage{booktabs}."""
    groups, rules, place = [], [], 2
    names = [table.head, *(column.title for column in table.columns)]
    for group in dict.fromkeys(column.group for column in table.columns):
        span = sum(column.group == group for column in table.columns)
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{group.translate(LATEX)}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + span - 1}}}")
        place += span
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\small",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        rf" & {' & '.join(groups)} \\",
        "".join(rules),
        rf"{' & '.join(name.translate(LATEX) for name in names)} \\",
        r"\midrule",
    ]
    for place, (title, cells) in enumerate(table.rows):
        if table.beyond and place == len(table.rows) - table.beyond:
            lines.append(r"\midrule")
        name = one_line(title).translate(LATEX)
        name = rf"\textbf{{{name}}}" if title in table.selected else name
        shown = [_latex_cell(column, cell) for column, cell in zip(table.columns, cells, strict=True)]
        lines.append(rf"{name} & {' & '.join(shown)} \\")
    caption = one_line(table.caption).translate(LATEX)
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:rrs{table.number}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(column: Column, cell: Cell) -> str:
    shown = (cell.absent if cell.value is None else _number(column, cell.value)).translate(LATEX)
    if cell.best:
        shown = rf"\underline{{{shown}}}" if column.signed else rf"\textbf{{{shown}}}"
    if cell.ci95:
        shown += rf" {{\scriptsize {interval_text(cell.ci95)}}}"
    if cell.paper is not None:
        shown += rf" {{\scriptsize ({_paper(column, cell).translate(LATEX)})}}"
    return shown
