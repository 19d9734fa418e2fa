"""Text of others as cells of Markdown and CSV tables, which programs open that do more than show it."""

import html

from rrs_jax.errors import visible

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with which a spreadsheet's formula begins


def one_line(text: str) -> str:
    """Returns the text in one line, single blanks between its words."""
    return visible(" ".join(text.split()))


def markdown_cell(text: str) -> str:
    """Returns the text as a cell of a Markdown table: one line, no HTML, no link, image or further cell."""
    cell = html.escape(one_line(text), quote=False).replace("|", "\\|").replace("](", "]\\(")
    return cell.replace("![", "!\\[")


def csv_cell(text: str) -> str:
    """Returns the text as a cell of a spreadsheet, which is to take none for a formula."""
    return "'" + text if text.lstrip(" ").startswith(FORMULA) else text


def csv_text(cell: str) -> str:
    """Returns the text of which `csv_cell` made the cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].lstrip(" ").startswith(FORMULA) else cell
