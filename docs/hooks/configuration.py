"""A hook of mkdocs: the page configuration.md, written from the fields themselves at every build."""

from mkdocs.structure.files import File

from rrs_jax.config import FIELDS


def on_files(files, config):
    """Adds the page to mkdocs' files."""
    lines = ["# Configuration", "", "Set a field with `--config.NAME=VALUE`, or in a config file.", ""]
    group = None
    for field in FIELDS.values():
        head = field.name.split(".")[0] if "." in field.name else "run"
        if head != group:
            group = head
            lines += ["", f"## {group}", "", "| field, default | meaning; what it takes |", "|---|---|"]
        meaning = f"{field.sentence}<br><small>{field.kind.wants}</small>"
        cells = (f"`{field.name}`<br><small>`{field.default!r}`</small>", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    files.append(File.generated(config, "configuration.md", content="\n".join(lines) + "\n"))
    return files
