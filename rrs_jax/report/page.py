"""`report/index.html`: everything that a run or a sweep found, on one page that needs nothing else.

    python -m rrs_jax.report.page RUN                           a run's page
    python -m rrs_jax.report.page --out=FOLDER RUN [RUN ...]    one page of several runs, in FOLDER

The stage `report` and a sweep make pages by themselves, with the paper's tables as files beside them. Only
files of the run folders are read.
"""

import argparse
import contextlib
import html
import sys
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import with_home
from rrs_jax.errors import UserError, exit_status, stop_if_asked
from rrs_jax.files import json_for_html, write_atomic
from rrs_jax.report import key_figures, plane, provenance, sections, training_figures
from rrs_jax.report.by_style import by_style
from rrs_jax.report.marks import names_of
from rrs_jax.report.paper_tables import paper_tables
from rrs_jax.report.plots import PLOTS
from rrs_jax.report.results import Results, read_results
from rrs_jax.report.separation import figures as all_figures
from rrs_jax.report.table_formats import csv_table, latex_table, markdown_table
from rrs_jax.web.page import fill

TEMPLATE = Path(__file__).parent / "page.html"


def make_page(out: str | Path, folders: Sequence[str | Path], title: str) -> Path:
    """Writes OUT/index.html and table2, table3, table4 as .md, .csv and .tex; returns the page's path.

    What cannot be made is a sentence on the page in its place. Raises UserError where a folder is no run.
    """
    out, results = Path(out), read_results(folders)
    for table in paper_tables(results):
        stop_if_asked()
        for suffix, text in (("md", markdown_table), ("csv", csv_table), ("tex", latex_table)):
            write_atomic(out / f"table{table.number}.{suffix}", text(table))
    content = page(results, folders, title)
    stop_if_asked()
    write_atomic(out / "index.html", content)
    return out / "index.html"


def make_sweep_pages(folder: Path, runs: Sequence[Path]) -> None:
    """Writes FOLDER/report of all runs that have begun, and each run's own report.

    Figure 2 of several runs is made at a time.
    """
    begun = [path for path in runs if (path / "config.json").is_file()]
    if begun:
        with contextlib.suppress(UserError):  # which each page then says in the figure's place
            all_figures(begun)
        make_page(folder / "report", begun, folder.resolve().name)
        for path in begun:
            make_page(path / "report", [path], path.name)


def page(results: Results, folders: Sequence[str | Path], title: str) -> str:
    """Returns the page as HTML; a section without content is left out."""
    questions: list[str] = []
    parts = [
        ("Results", "results", key_figures.key_figures(results)),
        ("Safety against over-rejection", "tradeoff", plane.tradeoff(results)),
        ("Tables", "tables", sections.tables(results, folders)),
        ("By style", "styles", by_style(results)),
        ("What a deployer asks", "deployment", sections.deployment(results)),
        ("Representations", "figure2", sections.figure_2(results, questions)),
        ("Rates by epoch", "epochs", sections.by_epoch(results)),
        ("Losses", "losses", sections.losses(results)),
        ("Safety features", "features", training_figures.contributions(results.recipes, names_of(results))),
        ("Answers", "answers", sections.samples(results)),
        ("Config", "config", provenance.config(results)),
        ("How it was made", "made", provenance.made(results)),
    ]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{name}">{html.escape(heading)}</a>' for heading, name, _ in parts)
    body = "".join(
        f'<section id="{name}"><h2>{html.escape(heading)}</h2>{inner}</section>'
        for heading, name, inner in parts
    )
    return fill(
        TEMPLATE,
        styles=[PLOTS],
        TITLE=html.escape(key_figures.title_of(results, title)),
        BODY=f"{key_figures.head(results, title)}<nav>{links}</nav>{body}",
        DATA=json_for_html(questions),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.report.page", description="The page of one or more runs."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--out", help="folder of the page and its tables (default: RUN/report of one run)")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        if options.out is None and len(options.runs) > 1:
            raise UserError("--out: several runs need a folder for their page; give --out=FOLDER.")
        out = Path(options.out or Path(options.runs[0]) / "report")
        name = Path(options.runs[0]).resolve().name if len(options.runs) == 1 else out.resolve().name
        print(make_page(out, options.runs, name))
    return status.code


if __name__ == "__main__":
    sys.exit(main())
