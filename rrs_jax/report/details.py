"""Tables beside that of the rates: what is kept, every judge's rates, agreement, paired tests, categories.

    python -m rrs_jax.report.details RUN [RUN ...] [--markdown]

It reads RUN/eval/NAME/summary.json, compared_to_vanilla.json and deployment.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import with_home
from rrs_jax.errors import exit_status
from rrs_jax.files import read_json
from rrs_jax.report.deployment import Table, deployment_tables, read_deployments
from rrs_jax.report.summaries import ABSENT, MODES, cell, label_of, read_summaries
from rrs_jax.report.table import markdown_rows, text_rows


def details(runs: Sequence[str | Path], markdown: bool = False, vanilla_once: bool = False) -> str:
    """Joins all tables of these runs, each under its title; arguments and errors as in `read_summaries`."""
    summaries = read_summaries(runs, vanilla_once)
    tables = [
        *deployment_tables(read_deployments(runs)),
        judges_table(summaries),
        agreement_table(summaries),
        paired_table(runs, summaries),
        categories_table(summaries),
    ]
    parts = []
    for title, rows in tables:
        if len(rows) > 1:
            lines = markdown_rows(rows) if markdown else text_rows(rows)
            parts.append("\n".join([f"**{title}**\n" if markdown else title, *lines]))
    return "\n\n".join(parts) + "\n"


def judges_table(summaries: Sequence[dict]) -> Table:
    """Returns a row for each evaluation and judge.

    Every rate has its interval; the any-of-n rates stand in columns of their own.
    """
    rows = [("Model, judge", "Rate", *MODES.values(), "any audio-text", "ORR", "any", "ORR borderline")]
    for summary in summaries:
        judged = {summary["judge"]: summary} | summary.get("other_judges", {})
        for judge, block in judged.items():
            harm = not block.get("asr_is", "compliance").startswith("compliance")
            first = block["modes"].get("audio_text")
            rows.append(
                (
                    f"{_label(summary, summaries)}, {judge}",
                    "ASR" if harm else "compliance",
                    *(cell(block["modes"].get(mode), "asr") for mode in MODES),
                    _percent(first, "any_asr"),
                    cell(block["orr"], "rate"),
                    _percent(block["orr"], "any_rate"),
                    cell(block["borderline_orr"], "rate"),
                )
            )
    return (
        "Rates by each judge (percent, 95 % interval over questions; any: questions with at least one)",
        rows,
    )


def agreement_table(summaries: Sequence[dict]) -> Table:
    """Returns a row for each pair of judges and label, with Cohen's kappa."""
    rows = [("Model", "Judges", "Label", "Cohen's kappa", "Agree %", "Responses")]
    for summary in summaries:
        for pair in summary.get("agreement", []):
            kappa = ABSENT
            if pair["kappa"] is not None:
                kappa = f"{pair['kappa']:.2f} [{pair['ci95'][0]:.2f}, {pair['ci95'][1]:.2f}]"
            agree = ABSENT if pair["agree"] is None else f"{pair['agree']:.1f}"
            rows.append(
                (
                    _label(summary, summaries),
                    " and ".join(pair["judges"]),
                    pair["label"],
                    kappa,
                    agree,
                    str(pair["responses"]),
                )
            )
    return "Agreement of the judges", rows


def paired_table(runs: Sequence[str | Path], summaries: Sequence[dict]) -> Table:
    """Returns a row for each comparison with the model before training, paired by question."""
    rows = [
        ("Model, judge", "Questions", "Mode", "Before", "After", "Difference", "p permutation", "p McNemar")
    ]
    for summary in summaries:
        run = next(Path(run) for run in runs if Path(run).name == summary["run"])
        path = run / "eval" / summary["name"] / "compared_to_vanilla.json"
        judges = read_json(path)["judges"] if path.is_file() else {}
        for judge, sets in judges.items():
            for question_set, modes in sets.items():
                for mode, block in modes.items():
                    if block:
                        low, high = block["ci95"]
                        rows.append(
                            (
                                f"{_label(summary, summaries)}, {judge}",
                                question_set,
                                MODES[mode],
                                *(f"{rate:.1f}" for rate in block["rates"]),
                                f"{block['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
                                f"{block['p_permutation']:.4f}",
                                f"{block['any']['p_mcnemar']:.4f}",
                            )
                        )
    return "Against the vanilla model, paired by question (points)", rows


def categories_table(summaries: Sequence[dict]) -> Table:
    """Returns a row for each category, with the first judge's rates."""
    rows = [("Model, category", *MODES.values(), "ORR", "ORR borderline")]
    for summary in summaries:
        by_category = summary.get("by_category", {"harmful": {}, "benign": {}, "borderline": {}})
        names = dict.fromkeys(name for categories in by_category.values() for name in categories)
        for name in names:
            harmful = by_category["harmful"].get(name, {})
            rows.append(
                (
                    f"{_label(summary, summaries)}, {name}",
                    *(cell(harmful.get(mode), "asr") for mode in MODES),
                    cell(by_category["benign"].get(name), "rate"),
                    cell(by_category["borderline"].get(name), "rate"),
                )
            )
    return "Rates by category (percent, the first judge's)", rows


def _label(summary: dict, summaries: Sequence[dict]) -> str:
    return label_of(summary, len({other["run"] for other in summaries}) > 1)


def _percent(block: dict | None, field: str) -> str:
    value = block.get(field) if block else None
    return ABSENT if value is None else f"{value:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.report.details", description="Judges, tests, categories."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder with eval/NAME/summary.json")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of plain text")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        print(details(options.runs, options.markdown), end="")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
