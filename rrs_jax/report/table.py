"""The table of rates of one or more runs, as plain text and as Markdown.

    python -m rrs_jax.report.table RUN [RUN ...]                        prints the text table
    python -m rrs_jax.report.table RUN --markdown                       prints the Markdown table
    python -m rrs_jax.report.table RUN --paste docs/results.md --name mini    replaces what stands between
        <!-- table:mini --> and <!-- /table --> in docs/results.md

It reads RUN/eval/NAME/summary.json of every evaluation in a run: the vanilla model first, then the others.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import with_home
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.summary import ORR_MODE
from rrs_jax.files import reason_of, write_atomic
from rrs_jax.report.summaries import ABSENT, MODES, cell, is_compliance, label_of, rate_name, read_summaries
from rrs_jax.web.text import markdown_cell, one_line


def header(summaries: Sequence[dict]) -> tuple[str, ...]:
    """Returns the header of the table of rates."""
    rate = rate_name(summaries)
    rate = rate[0].upper() + rate[1:]
    return ("Model", *(f"{rate} {mode}" for mode in MODES.values()), "ORR", "ORR borderline", "NSI average")


def text_table(runs: Sequence[str | Path], vanilla_once: bool = False) -> str:
    """Returns the table for a terminal: columns padded with spaces, notes below."""
    summaries = read_summaries(runs, vanilla_once)
    return "\n".join([*text_rows([header(summaries), *_rows(summaries)]), "", *notes(summaries)]) + "\n"


def markdown_table(runs: Sequence[str | Path], vanilla_once: bool = False) -> str:
    """Returns the table in GitHub's Markdown."""
    summaries = read_summaries(runs, vanilla_once)
    rows = markdown_rows([header(summaries), *_rows(summaries)])
    # Two spaces and a line's end are Markdown's line break.
    return "\n".join(rows) + "\n\n" + "  \n".join(notes(summaries)) + "\n"


def text_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose first row is its header: columns padded with spaces."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return lines


def markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first row is its header."""
    rule = ("---", *["---:"] * (len(rows[0]) - 1))
    return [_markdown_row(row) for row in (rows[0], rule, *rows[1:])]


def notes(summaries: Sequence[dict]) -> list[str]:
    """Returns what the numbers are: unit, judge, sizes, and how many responses were no answer or refusal."""
    lines = [
        "Percent of responses, in brackets the 95 % interval over questions; NSI in points.",
        *dict.fromkeys(_judge_note(summary) for summary in summaries),
        *dict.fromkeys(_size_note(summary) for summary in summaries),
    ]
    several = len({summary["run"] for summary in summaries}) > 1
    for summary in summaries:
        label = label_of(summary, several)
        if counts := _non_answers(summary):
            lines.append(f"Neither answer nor refusal, {label}: {'; '.join(counts)}.")
        if shares := _first_token(summary):
            lines.append(f"Begin with the refusal token (diagnostic), {label}: {', '.join(shares)}.")
        if everyday := summary.get("everyday_orr"):
            lines.append(f"Refused of everyday questions, {label}: {cell(everyday, 'rate')}.")
        if refused := _over_refusal_elsewhere(summary):
            lines.append(f"Refused in other modes, {label}: {'; '.join(refused)}.")
        if summary.get("seeds"):
            lines.append(f"Mean over {len(summary['seeds']['runs'])} seeds, {label}: {_over_seeds(summary)}.")
        if summary["air_bench"]:
            lines.append(f"AIR-Bench chat, helpfulness, {label}: {_helpfulness(summary['air_bench'])}.")
    return lines


def paste(path: str | Path, name: str, table: str) -> None:
    """Replaces the text between `<!-- table:NAME -->` and the next `<!-- /table -->` in the file `path`.

    Raises UserError where the file or one of the markers is missing, or the first marker occurs twice.
    """
    path, start, end = Path(path), f"<!-- table:{name} -->", "<!-- /table -->"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({reason_of(error)}); name an existing Markdown file."
        ) from error
    if text.count(start) != 1:
        raise UserError(
            f"{path}: holds {start} {text.count(start)} times; write it once, with {end} after it."
        )
    before, after = text.split(start)
    if end not in after or "<!-- table:" in after.split(end)[0]:
        raise UserError(f"{path}: {start} has no {end} after it; add it where the table ends.")
    write_atomic(path, before + start + "\n" + table + after[after.index(end) :])


def _rows(summaries: Sequence[dict]) -> list[tuple[str, ...]]:
    several = len({summary["run"] for summary in summaries}) > 1
    return [
        (
            label_of(summary, several),
            *(cell(summary["modes"].get(mode), "asr") for mode in MODES),
            cell(summary["orr"], "rate"),
            cell(summary["borderline_orr"], "rate"),
            _nsi_cell(summary["nsi"]),
        )
        for summary in summaries
    ]


def _nsi_cell(nsi: dict | None) -> str:
    return "-" if nsi is None else f"{nsi['average']:+.1f}"


def _judge_note(summary: dict) -> str:
    version = f" (version {summary['judge_version']})" if "judge_version" in summary else ""
    meaning = ""
    if is_compliance(summary):
        meaning = ", which sees refusals alone: compliance is 1 - refusal, an upper bound of ASR"
    elif "asr_is" in summary:
        meaning = f"; ASR is {summary['asr_is']}"
    return f"Judge: {summary['judge']}{version}{meaning}."


def _size_note(summary: dict) -> str:
    harmful = next((block for block in summary["modes"].values() if block), None)
    sets = {"harmful": harmful, **_harmless(summary)}
    sizes = [f"{block['queries']} {name}" for name, block in sets.items() if block]
    samples = f", {summary['samples']} response(s) each" if "samples" in summary else ""
    return f"Questions: {', '.join(sizes)}{samples}."


def _harmless(rates: dict) -> dict[str, dict | None]:
    """Returns the blocks of harmless questions, by set; everyday ones where they were asked."""
    everyday = {"everyday": rates["everyday_orr"]} if "everyday_orr" in rates else {}
    return {"benign": rates["orr"], "borderline": rates["borderline_orr"], **everyday}


def _non_answers(summary: dict) -> list[str]:
    blocks = {f"harmful {label}": summary["modes"].get(mode) for mode, label in MODES.items()}
    blocks |= _harmless(summary)
    found = []
    for label, block in blocks.items():
        kinds = ("empty", "unfinished", "transcription", "gibberish", "unjudged")
        counts = [f"{block[kind]} {kind}" for kind in kinds if block and block.get(kind)]
        if counts:
            found.append(f"{label} {', '.join(counts)} of {block['responses'] + block.get('unjudged', 0)}")
    return found


def _first_token(summary: dict) -> list[str]:
    block = summary.get("other_judges", {}).get("first_token")
    if not block:
        return []
    shares = {f"harmful {label}": block["modes"].get(mode) for mode, label in MODES.items()}
    shares |= _harmless(block)
    return [
        f"{name} {100 * b['refusals'] / b['responses']:.1f} %"
        for name, b in shares.items()
        if b and b["responses"]
    ]


def _over_refusal_elsewhere(summary: dict) -> list[str]:
    """Returns the rates of `evaluate.over_refusal_modes` that stand in no column."""
    found = []
    for mode, blocks in (summary.get("orr_by_mode") or {}).items():
        shown = [f"{name} {cell(block, 'rate')}" for name, block in _harmless(blocks).items() if block]
        if shown and mode != ORR_MODE:
            found.append(f"{MODES[mode]} {', '.join(shown)}")
    return found


def _over_seeds(summary: dict) -> str:
    seeds, rate = summary["seeds"], rate_name([summary])
    rates = {f"{rate} {label}": seeds["modes"].get(mode) for mode, label in MODES.items()}
    rates |= {"ORR": seeds["orr"], "ORR borderline": seeds["borderline_orr"]}
    rates |= {"ORR everyday": seeds["everyday_orr"]} if "everyday_orr" in seeds else {}
    shown = [
        f"{name} {spread['mean']:.1f} (standard deviation {spread['sd']:.1f})"
        for name, spread in rates.items()
        if spread and spread["sd"] is not None
    ]
    return ", ".join(shown)


def _helpfulness(result: dict) -> str:
    scores = {name: block["hs"] for name, block in result["groups"].items()} | {"mean": result["hs"]}
    shown = ", ".join(f"{name} {ABSENT if hs is None else format(hs, '.2f')}" for name, hs in scores.items())
    return f"{shown} (judge {result['judge']}, {result['unparsed']} unparsed, {result['empty']} empty)"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_cell, cells)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m rrs_jax.report.table", description="Rates of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder with eval/NAME/summary.json")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of plain text")
    parser.add_argument("--paste", metavar="FILE", help="Markdown file whose table is replaced")
    parser.add_argument("--name", default="rates", help="marker <!-- table:NAME --> (default: rates)")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        if options.paste:
            paste(options.paste, options.name, markdown_table(options.runs))
            print(f"{options.paste}: table {options.name} replaced")
        else:
            print(markdown_table(options.runs) if options.markdown else text_table(options.runs), end="")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
