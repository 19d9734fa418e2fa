"""A hook of mkdocs: the page configuration.md, written from the fields themselves at every build."""

import re

from mkdocs.structure.files import File

from rrs_jax.config import FIELDS

HEAD = """\
# Configuration

A run takes a config file, such as `configs/mini_rrs.py`, and single fields behind it:

    python launch.py --config=configs/mini_rrs.py \\
        --config.train.epochs=3 --config.data.voices=hibari:heart,flite:slt

A list is written with commas, no value as `None`. A name or value that is wrong ends the command with a
sentence that says what to give. Below: every field with its default, what it means, and in grey what it
takes.
"""


def on_files(files, config):
    """Adds the page to mkdocs' files."""
    lines = HEAD.splitlines()
    group = None
    for field in FIELDS.values():
        head = field.name.split(".")[0] if "." in field.name else "run"
        if head != group:
            group = head
            lines += ["", f"## {group}", "", "| field, default | meaning; what it takes |", "|---|---|"]
        sentence = re.sub(r"docs/(\w+)\.md", _link, field.sentence)
        meaning = f"{sentence}<br><small>{field.kind.wants}</small>"
        cells = (f"{_breakable(field.name)}<br><small>`{field.default!r}`</small>", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    files.append(File.generated(config, "configuration.md", content="\n".join(lines) + "\n"))
    return files


def _link(page: re.Match) -> str:
    """Returns a link to a page that a sentence names by its file."""
    return f"[{page[1].replace('_', ' ').capitalize()}]({page[1]}.md)"


def _breakable(name: str) -> str:
    """Returns a field's name as code that a phone may break behind its dots and underscores."""
    return '<code class="field">' + re.sub(r"([._])", r"\1<wbr>", name) + "</code>"
