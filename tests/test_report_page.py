"""The report page: the paper's tables and numbers, small parts, and the page itself in a real browser."""

import csv
import html
import itertools
import math
import re
import shutil

import numpy as np
import pytest
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By

from helpers.report_runs import HOSTILE, REFUSAL, write_run
from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.evaluate.pool import pool
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.report import key_figures, page, provenance, separation
from rrs_jax.report.marks import ROUND, Mark, marks_of
from rrs_jax.report.page import make_page, make_sweep_pages
from rrs_jax.report.paper_tables import paper_tables
from rrs_jax.report.plane import OVERLAP, Point, dodged, draw_plane
from rrs_jax.report.plots import Axis, axis_over
from rrs_jax.report.results import read_paper, read_results, read_run
from rrs_jax.report.table_formats import csv_table, latex_table, markdown_table
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.pipeline import print_summary

QWEN = {"model.path": "/models/Qwen2-Audio-7B-Instruct"}
MODES = ("audio_text", "text_only", "audio_only")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Eight runs: two seeds of RRS, two of SFT, the ablations and one that the paper does not have."""
    folder = tmp_path_factory.mktemp("sweep") / "a <b> sweep"
    write_run(folder / "vanilla", "vanilla", **QWEN)
    write_run(folder / "rrs", hs=6.5, **QWEN)
    write_run(folder / "rrs-seed1", seed=1, draw=1, **QWEN)
    write_run(folder / "sft_shallow_mirror", "sft_shallow_mirror", (0.0, 0.3, 0.9), draw=2, **QWEN)
    write_run(folder / "sft_full", "sft_full", (0.5, 0.0, 0.2), draw=3, **QWEN)
    write_run(folder / "rrs_without_penalty", draw=4, **QWEN, **{"penalty.weight": 0.0})
    write_run(folder / "rrs_top25", draw=5, **QWEN, **{"rrs.top_m": 25.0})
    write_run(folder / "rrs_plus", "rrs_plus", (0.2, 0.0, 0.2), draw=6, **QWEN)
    names = (
        "vanilla",
        "rrs",
        "rrs-seed1",
        "sft_shallow_mirror",
        "sft_full",
        "rrs_without_penalty",
        "rrs_top25",
        "rrs_plus",
    )
    make_sweep_pages(folder, [folder / name for name in (*names, "not_begun")])
    return folder


def rows_of(folder, number):
    """Returns the CSV file's rows by strategy."""
    rows = list(csv.DictReader((folder / "report" / f"table{number}.csv").open(encoding="utf-8")))
    return {row["strategy"]: row for row in rows}


def test_the_papers_numbers_agree_with_each_other():
    """NSI is the fall of ASR less the rise of ORR, in all of its rows; a slip of a digit would show. 0.02: of
    rounding."""
    checked = 0
    for model in read_paper()["models"].values():
        rows = model["rows"]
        for row in rows.values():
            if "nsi_average" not in row:
                continue
            rise = row["orr"] - rows["vanilla"]["orr"]
            nsi = {mode: rows["vanilla"][mode] - row[mode] - rise for mode in MODES if row[mode] is not None}
            assert np.mean(list(nsi.values())) == pytest.approx(row["nsi_average"], abs=0.02)
            assert all(
                value == pytest.approx(row["nsi"][mode], abs=0.02)
                for mode, value in nsi.items()
                if "nsi" in row
            )
            checked += 1
        chosen = rows[f"top{model['top_m']:g}"]
        assert {name: rows["rrs"][name] for name in chosen} == chosen
    assert checked == 18


def test_tables_have_the_papers_rows(sweep):
    two, three, four = (rows_of(sweep, number) for number in (2, 3, 4))
    assert list(two) == ["vanilla", "① SFT-full", "② SFT-shallow-mirror"]
    assert list(three) == [
        "vanilla",
        "② SFT-shallow-mirror",
        "RRS (2 seeds)",
        "RRS w/o penalty term",
        "rrs_plus",
    ]
    assert list(four) == ["Top-25%", "Top-51%"]
    assert (
        three["RRS (2 seeds)"]["audio_text_asr_paper"] == "5.94"
        and three["rrs_plus"]["audio_text_asr_paper"] == ""
    )
    assert (four["Top-25%"]["orr_paper"], four["Top-51%"]["orr_paper"]) == ("2.06", "3.89")
    assert float(three["RRS (2 seeds)"]["hs"]) == 6.5 and three["RRS w/o penalty term"]["hs"] == ""


def test_numbers_are_the_summaries(sweep):
    row = rows_of(sweep, 2)["② SFT-shallow-mirror"]
    summary = read_json(sweep / "sft_shallow_mirror" / "eval" / "sft_shallow_mirror" / "summary.json")
    for mode in MODES:
        block = summary["modes"][mode]
        assert [float(row[f"{mode}_asr{part}"]) for part in ("", "_low", "_high")] == [
            block["asr"],
            *block["ci95"],
        ]
    assert float(row["borderline_orr"]) == summary["borderline_orr"]["rate"]
    assert float(row["nsi_average"]) == summary["nsi"]["average"]


def test_seeds_are_pooled(sweep):
    """Rates by hand: answers of both seeds over all answers; NSI against the vanilla model of the same
    seeds."""
    row = rows_of(sweep, 3)["RRS (2 seeds)"]
    parts = [read_json(sweep / name / "eval" / "rrs" / "summary.json") for name in ("rrs", "rrs-seed1")]
    answered = sum(
        part["modes"]["text_only"]["responses"] - part["modes"]["text_only"]["refusals"] for part in parts
    )
    assert float(row["text_only_asr"]) == pytest.approx(100 * answered / 32, abs=1e-3)
    vanilla = pool([sweep / name / "eval" / "vanilla" for name in ("rrs", "rrs-seed1")])
    rise = float(row["orr"]) - vanilla["orr"]["rate"]
    expected = vanilla["modes"]["text_only"]["asr"] - float(row["text_only_asr"]) - rise
    assert float(row["text_only_nsi"]) == pytest.approx(expected, abs=1e-3)


def test_markdown_and_latex_are_whole(sweep):
    names = [path for path in sweep.iterdir() if (path / "config.json").is_file()]
    for table in paper_tables(read_results(sorted(names))):
        lines = markdown_table(table).splitlines()[2:]
        assert (
            len({line.count("|") - line.count("\\|") for line in lines}) == 1
            and len(lines) == len(table.rows) + 2
        )
        latex = latex_table(table)
        body = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(table.columns) for line in body)
        assert latex.count("{") == latex.count("}") and not re.search(
            r"(?<!\\)[%_#]", latex.split(r"\label")[0]
        )
        assert latex.isascii()
    best = markdown_table(paper_tables(read_results(sorted(names)))[0])
    assert "**0.0** [" in best  # no harmful question answered by SFT-shallow-mirror


def test_what_a_run_is_follows_from_its_config(tmp_path):
    """Not from its name; other evaluation settings do not matter, other training does."""
    base = write_run(tmp_path / "one", pairs=4, evaluated=())
    others = {
        "rrs": {"evaluate.limit": 3, "generate.greedy": True},
        "rrs_without_penalty": {"penalty.weight": 0.0},
        "top12.5": {"rrs.top_m": 12.5},
        None: {"train.learning_rate": 1e-3},
    }
    for place, (key, fields) in enumerate(others.items()):
        run = read_run(write_run(tmp_path / f"other{place}", pairs=4, evaluated=(), **fields))
        assert page.read_results([base, run.path]).recipes[1].key == key


def test_other_models_have_no_paper(tmp_path):
    folder = write_run(tmp_path / "run", pairs=4)
    make_page(folder / "report", [folder], "run")
    assert "names none of the paper's three models" in html.unescape(
        (folder / "report" / "index.html").read_text()
    )
    rows = list(csv.DictReader(csv_table(paper_tables(read_results([folder]))[0]).splitlines()))
    assert not any(value for row in rows for name, value in row.items() if name.endswith("_paper"))


# Small parts


def test_axes_hold_their_values():
    for low, high in itertools.product((-3.2, 0.0, 0.004), (0.011, 7.0, 12_345.0)):
        axis = axis_over([low, high], "")
        assert axis.low <= low and axis.high >= high and 2 <= len(axis.ticks()) <= 9
        assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks())
    log = axis_over([0.03, 4_000.0], "", log=True)
    assert (log.low, log.high, log.place(10.0)) == (0.01, 10_000.0, 0.5)
    assert Axis(0, 100, root=True).place(25) == 0.5


def test_runs_that_are_not_there_yet(tmp_path):
    """One begun, one trained and not evaluated: a page without tables; a folder that is no run: a
    sentence."""
    for name in ("begun", "trained"):
        shutil.rmtree(write_run(tmp_path / name, pairs=4) / "eval")
    shutil.rmtree(tmp_path / "begun" / "epochs")
    make_sweep_pages(tmp_path, [tmp_path / name for name in ("begun", "trained", "absent")])
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<table id=" not in text and "Losses" in text and 'class="cloud' in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/config\.json: cannot be read"):
        make_page(tmp_path / "x", [tmp_path / "empty"], "x")


def test_the_command(tmp_path, capsys):
    folder = write_run(tmp_path / "run", pairs=4, evaluated=(), recorded=())
    assert page.main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report" / "index.html")
    assert page.main([str(folder), str(folder)]) == 2
    assert "--out: several runs need a folder" in capsys.readouterr().err


def test_a_run_ends_with_how_to_open_its_page(tmp_path, capsys):
    folder, config = write_run(tmp_path / "run", pairs=4, evaluated=(), recorded=()), default_config()
    config.update_from_flattened_dict(read_run(folder).config)
    print_summary(RunFolder(folder, config))
    assert "browser" not in capsys.readouterr().out
    make_page(folder / "report", [folder], "run")
    print_summary(RunFolder(folder, config))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"To look and listen, open {(folder / 'report' / 'index.html').resolve()} in a browser."


def test_answers_that_changed_come_first(sweep):
    from rrs_jax.report.samples import choose_samples

    names = ("vanilla", "rrs", "sft_full")
    samples = choose_samples(read_results([sweep / name for name in names]))
    assert {
        label: sum(s.label == label for s in samples) for label in ("harmful", "benign", "borderline")
    } == {"harmful": 4, "benign": 3, "borderline": 3}
    harmful = [sample for sample in samples if sample.label == "harmful"]
    assert all(
        [title for title, *_ in sample.answers] == ["vanilla", "RRS", "① SFT-full"] for sample in samples
    )
    changed = [sample.answers[0][2] != sample.answers[1][2] for sample in harmful]
    assert changed[0] and not changed[1]
    assert all((answer == REFUSAL) == refused for sample in samples for _, answer, refused in sample.answers)


# What a reader sees first


def test_the_tiles_are_those_of_rrs_with_nsi(sweep):
    """Also where rrs_plus has the better figures: the paper's method comes first."""
    results = read_results([sweep / name for name in ("vanilla", "rrs_plus", "rrs", "sft_full")])
    text = key_figures.key_figures(results)
    assert "The paper's method" in text and "--config.strategy=rrs<" in text
    nsi = read_json(sweep / "rrs" / "eval" / "rrs" / "summary.json")["nsi"]["average"]
    assert f"<b>{nsi:+.1f}</b>" in text and text.count("class='tile ") == 6
    alone = key_figures.key_figures(read_results([sweep / "vanilla", sweep / "sft_full"]))
    assert "The paper's method" not in alone and "--config.strategy=sft_full<" in alone


def test_a_run_without_an_effect_is_said_to_have_none(sweep):
    results = read_results([sweep / "vanilla", sweep / "rrs"])
    said = "In no mode are fewer harmful questions answered beyond the intervals."
    modes = results.main.summary["modes"]
    modes["audio_only"] = modes["audio_only"] | {"asr": 0.0, "ci95": [0.0, 0.1]}
    assert said not in key_figures.key_figures(results)
    results.main.summary["modes"] = results.vanilla.summary["modes"]
    assert said in key_figures.key_figures(results)


@pytest.mark.parametrize(
    "new, expected", [((10, 20), "better"), ((10, 30), "unclear"), ((35, 45), "unclear"), ((51, 60), "worse")]
)
def test_a_tile_is_grey_where_intervals_overlap(new, expected):
    old = {"asr": 40.0, "ci95": [30.0, 50.0]}
    assert key_figures.verdict(old, {"asr": sum(new) / 2, "ci95": list(new)}, "asr") == expected


def test_one_word_for_the_rate(tmp_path):
    """The judge of these runs sees refusals alone; ASR stands where compliance is explained."""
    folder = write_run(tmp_path / "run", pairs=8)
    text = html.unescape(page.page(read_results([folder]), [folder], "run"))
    body = re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.DOTALL)
    assert body.count("compliance") > 20 and body.count("an upper bound of ASR") == 2
    assert "ASR" not in body.replace("an upper bound of ASR", "")


def test_a_table_of_one_row_is_not_shown(tmp_path):
    folder = write_run(tmp_path / "run", pairs=8)
    text = make_page(folder / "report", [folder], "run").read_text()
    assert 'id="table3"' in text and 'id="table4"' not in text and "table4.csv" not in text
    assert (folder / "report" / "table4.csv").is_file()


def test_every_strategy_has_one_number_and_one_mark(sweep):
    """The paper's numbers where it has some; a colour a family, and no shape twice in one."""
    results = read_results([path.parent for path in sorted(sweep.glob("*/config.json"))])
    marks = {recipe.name: marks_of(results)[recipe.id] for recipe in results.everything}
    paper, others = ["vanilla", "sft_full", "sft_shallow_mirror"], ["rrs", "rrs_top25"]
    others += ["rrs_without_penalty", "rrs_plus"]
    assert [marks[name].number for name in (*paper, *others)] == [0, 1, 2, 5, 6, 7, 8]
    assert marks["rrs_plus"].family == "plus" and marks["sft_full"].family == "sft"
    assert len({(mark.family, mark.shape) for mark in marks.values()}) == len(marks)
    text = (sweep / "report" / "index.html").read_text()
    swatches = re.findall(r'<span class="strategy"><svg.*?>(\d+)</text></svg>(.*?)</span>', text)
    named = {(int(number), name) for number, name in swatches if not name.startswith("Top-")}
    assert len(named) == len({number for number, _ in named}) == len(marks)
    assert "①" not in text.split('id="answers"')[0].split("<details>")[0]


def test_marks_at_one_place_are_moved_apart():
    frame = (0.0, 0.0, 400.0, 400.0)
    places = [(200.0, 400.0, 13.0), *[(200.0, 400.0, 9.0)] * 9, (20.0, 20.0, 9.0)]
    found = dodged(places, frame)
    assert found[0] == (200.0, 400.0) and found[-1] == (20.0, 20.0)
    for (one, (*_, size)), (other, (*_, other_size)) in itertools.combinations(
        zip(found, places, strict=True), 2
    ):
        assert math.dist(one, other) >= OVERLAP * (size + other_size) - 0.2
    assert all(0 <= x <= 400 and 0 <= y <= 400 for x, y in found)


def test_the_main_recipe_lies_on_top_larger_and_named():
    rrs, other = Mark("rrs", "circle", 5), Mark("sft", "square", 2)
    points = [
        Point("RRS", rrs, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), main=True, named=True),
        Point("SFT", other, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),
    ]
    svg = draw_plane(points, ("ASR, %", "ORR, %")).svg()
    assert svg.index('class="mark sft') < svg.index('class="mark rrs main"') < svg.index(">RRS</text>")
    assert ">SFT</text>" not in svg and 'class="leader sft"' in svg
    (radius,) = re.findall(r'<circle class="shape" [^>]*r="([\d.]+)"', svg)
    assert float(radius) > ROUND


def test_the_config_says_what_differs_and_breaks_no_word(sweep):
    results = read_results([path.parent for path in sorted(sweep.glob("*/config.json"))])
    text = provenance.config(results)
    row = re.search(r"<tr><th[^>]*>rrs\.<wbr>top_m</th>(.*?)</tr>", text)[1]
    assert row == "<td>51</td><td><b>25</b> in rrs_top25</td>"
    assert '<th scope="col">Most runs</th>' in text and "anywhere" not in text


# The page, in a real browser, from disk


@pytest.fixture
def opened(browser, sweep, request):
    width = getattr(request, "param", 1200)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((sweep / "report" / "index.html").as_uri())
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("opened", [360, 1200], indirect=True)
def test_nothing_sticks_out_and_nothing_is_fetched(opened, sweep):
    opened.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert opened.get_log("browser") == []
    fetched = opened.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []
    headings = [heading.text for heading in opened.find_elements(By.TAG_NAME, "h2")]
    assert headings == [
        "Results",
        "Safety against over-rejection",
        "Tables",
        "Representations",
        "Rates by epoch",
        "Losses",
        "Safety features",
        "Answers",
        "Config",
        "How it was made",
    ]
    assert (sweep / "report" / "index.html").stat().st_size < 6e6


def test_text_from_outside_stays_text(opened, sweep):
    """Answers, questions, categories, the device and the sweep's name have markup."""
    assert opened.title == "a <b> sweep · Qwen2-Audio-7B-Instruct · 2026-11-24 · RRS-JAX"
    assert opened.find_element(By.TAG_NAME, "h1").text == "a <b> sweep: Qwen2-Audio-7B-Instruct"
    assert opened.find_element(By.CLASS_NAME, "project").text == "RRS-JAX · report of 8 runs · 2026-11-24"
    assert opened.find_elements(By.CSS_SELECTOR, "img, [onerror], h1 b") == []
    text = opened.execute_script("return document.querySelector('main').textContent")
    assert re.search(f"Here is how, for p\\d-benign: {re.escape(HOSTILE)} then you are done.", text)
    # whoever hears with a screen reader
    assert all(
        part.get_attribute("aria-label")
        for part in opened.find_elements(By.CSS_SELECTOR, "svg:not([aria-hidden]), audio, .dot, g.mark")
    )
    for table in opened.find_elements(By.CSS_SELECTOR, "table[aria-labelledby]"):
        assert opened.find_element(By.ID, table.get_attribute("aria-labelledby")).text.startswith("Table ")


def hover(browser, element, x: int = 0, y: int = 0):
    """The pointer on the element's middle, moved by x and y; after scrolling, of which the page is told late
    and which takes a tip away."""
    left, top = browser.execute_async_script(
        """const [element, done] = arguments;
        element.scrollIntoView({block: "center"});
        const box = element.getBoundingClientRect();
        const middle = [box.x + box.width / 2, box.y + box.height / 2];
        requestAnimationFrame(() => requestAnimationFrame(() => done(middle)));""",
        element,
    )
    builder = ActionBuilder(browser)
    builder.pointer_action.move_to_location(round(left + x), round(top + y))
    builder.perform()


def test_marks_and_points_can_be_hovered(opened, sweep):
    tip = opened.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    mark = opened.find_element(By.CSS_SELECTOR, "#tradeoff g.mark.main")
    hover(opened, mark)
    assert tip.is_displayed() and tip.text.startswith("RRS: compliance audio-text, % ")
    cloud = opened.find_element(By.CSS_SELECTOR, "#figure2 svg.cloud")
    figure = separation.figures([sweep / "rrs"])[sweep / "rrs"]
    x, y = figure.tsne[0][3]
    box = cloud.rect  # margins of 40 about the grid of 1000; the pointer's offset is from the middle
    scale = box["width"] / 1080
    hover(opened, cloud, round((x - 500) * scale), round((500 - y) * scale))
    question = {row["id"]: row for row in read_jsonl(sweep / "rrs" / "data" / "eval" / "manifest.jsonl")}[
        figure.ids[3]
    ]
    assert tip.is_displayed() and tip.text == f"{question['label']}: {question['question']}"


def test_a_clip_plays(opened):
    ended = opened.execute_async_script("""
        const done = arguments[0], player = document.querySelector("audio");
        player.onended = () => done("ended"); player.onerror = () => done("error");
        player.muted = true; player.playbackRate = 8; player.play().catch(error => done(String(error)));""")
    assert ended == "ended"
    assert opened.execute_script("return document.querySelector('audio').duration") == pytest.approx(
        1.0, abs=0.15
    )
    assert opened.get_log("browser") == []


def test_dark_and_print(opened):
    """Colours are told apart in both; nothing is lost on paper but players and links."""
    colours = {}
    for scheme in ("light", "dark"):
        opened.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        colours[scheme] = opened.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
    assert (
        contrast(*colours["light"]) > 7
        and contrast(*colours["dark"]) > 7
        and colours["light"] != colours["dark"]
    )
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    shown = opened.execute_script(
        "return ['nav', 'audio', '#table3', '#losses svg'].map(q => "
        "getComputedStyle(document.querySelector(q)).display !== 'none')"
    )
    assert shown == [False, False, True, True]
    opened.execute_script("show('left open by the mouse', 10, 10)")
    assert not opened.find_element(By.ID, "tip").is_displayed()
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def contrast(one: str, other: str) -> float:
    """Returns the contrast by the web's accessibility rules (WCAG 2), for `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
