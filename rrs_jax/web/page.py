"""Pages that need nothing from elsewhere: a template, the common style, and the parts that fill its marks."""

import html
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
COLOURS = FOLDER / "colours.css"  # names of colours, light and dark
STYLE = FOLDER / "page.css"  # of every page


class Html(str):
    """A text that is HTML already."""


def escaped(text: str) -> str:
    """Returns the text as HTML; one that is `Html` stays as it is."""
    return text if isinstance(text, Html) else html.escape(text)


def how_to_open(page: Path) -> str:
    """Returns the last line of what a command prints, which says how to see its page."""
    return f"To look and listen, open {page.resolve()} in a browser."


def fill(template: Path, styles: Sequence[Path] = (), **parts: str) -> str:
    """Returns the template with its marks `<!--NAME-->` replaced by parts, and STYLE by the style sheets.

    `styles` are added behind the common ones. Each mark is replaced once, and no mark within a part is.
    Raises ValueError where the template lacks a mark.
    """
    sheets = (COLOURS, STYLE, *styles)
    parts = {"STYLE": "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)} | parts
    done, rest = "", template.read_text(encoding="utf-8")
    places = sorted((rest.index(f"<!--{name}-->"), name) for name in parts)
    for _, name in places:
        before, rest = rest.split(f"<!--{name}-->", 1)
        done += before + parts[name]
    return done + rest
