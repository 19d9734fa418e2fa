"""README, CONTRIBUTING and docs/: what they name exists, figures are the published ones, prose is short."""

import ast
import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest

import rrs_jax

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RESULTS = ROOT / "docs" / "results"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

PARAGRAPH_LETTERS = 600
READING_LINES = 120
RESULTS_BYTES = 3_000_000
# docs/glossary.md: words for which there is another one.
AVOIDED = re.compile(r"\b(before training|untrained|frozen model|twins?|mirrored)\b", re.IGNORECASE)
GENERATED_PAGES = ("configuration.md", "api/index.md")  # made by mkdocs (docs/hooks/)


def prose(text: str) -> str:
    """The text without tables between markers, fenced code and comments."""
    for pattern in (r"<!-- table:.*?<!-- /table -->", r"^```.*?^```", r"<!--.*?-->"):
        text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
    return text


def paragraphs(text: str) -> list[str]:
    """Runs of lines that a reader sees as one block; an item of a list is one, tables and code are none."""
    found: list[list[str]] = [[]]
    for line in prose(text).splitlines():
        if not line.strip() or line.startswith(("|", "#", "    ")):
            found.append([])
            continue
        if re.match(r"\s*([-*]|\d+\.) ", line):
            found.append([])
        found[-1].append(line.strip())
    return [" ".join(lines) for lines in found if lines]


def slug(heading: str) -> str:
    """The anchor that mkdocs and GitHub give a heading, without code marks and punctuation."""
    words = re.sub(r"[^\w\s-]", "", heading.strip().lower())
    return re.sub(r"\s", "-", words)


@functools.cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes, constants of a Python file, and methods as CLASS.METHOD, without importing it."""
    found = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def named_pair_exists(pair: str) -> bool:
    """Returns whether `PATH:NAME` is a Python file of the repository and something in it."""
    path, _, name = pair.partition(":")
    return (ROOT / path).is_file() and name in names_in(ROOT / path)


def dotted_exists(dotted: str) -> bool:
    """Returns whether a dotted name is a module of the repository, or something that a module has or
    imports."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    owner = next(
        (file for file in (path.parent.with_suffix(".py"), path.parent / "__init__.py") if file.is_file()),
        None,
    )
    if owner is None:
        return False
    tree = ast.parse(owner.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    lazy = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]  # rrs_jax/__init__.py's
    names = names_in(owner) | {alias.name for node in imports for alias in node.names}
    return path.name in names or (owner.name == "__init__.py" and path.name in lazy)


def script(name: str):
    """Imports a file of docs/, which is no package."""
    path = ROOT / "docs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readers_of_pages_see_what_is_there(tmp_path):
    text = (
        "# A\nfirst\nline\n\n- item\n- other\n    code\n| row |\n<!-- table:x -->\nhidden\n<!-- /table -->\n"
    )
    assert paragraphs(text) == ["first line", "- item", "- other"]
    assert slug("4. Does `rrs_plus` hold?") == "4-does-rrs_plus-hold"
    (tmp_path / "a.py").write_text("A = 1\nb: int = 2\nclass C:\n    d: str\n    def e(self): ...\n")
    assert names_in(tmp_path / "a.py") == {"A", "b", "C", "C.d", "C.e"}
    assert not named_pair_exists("launch.py:nothing_of_this_name")
    assert not named_pair_exists("no_such_file.py:main")
    assert dotted_exists("rrs_jax.load_model") and dotted_exists("rrs_jax.report.table.paste")
    assert not dotted_exists("rrs_jax.report.table.nothing") and not dotted_exists("rrs_jax.no.module")


@every_page
def test_paragraphs_are_short(page):
    long = [text for text in paragraphs(page.read_text(encoding="utf-8")) if len(text) > PARAGRAPH_LETTERS]
    assert not long


@every_page
def test_words_are_those_of_the_glossary(page):
    text = re.sub(r"`[^`]*`", "", prose(page.read_text(encoding="utf-8")))
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    assert page.name == "glossary.md" or not [line for line in lines if AVOIDED.search(line)]


@every_page
def test_paths_and_modules_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = set(
        re.findall(r"\b(?:rrs_jax|tests|configs|benchmarks|docs|checkpoints|examples)/[\w/.-]*\.\w+", text)
    )
    paths = {path.rstrip(".") for path in paths if not re.search(r"[/_](NAME|FILE)\.", path)}
    missing = {path for path in paths if not (ROOT / path).exists()}
    modules = {match.replace(".", "/") for match in re.findall(r"\bpython -m (rrs_jax[\w.]*)", text)}
    missing |= {
        module
        for module in modules
        if not (ROOT / f"{module}.py").is_file() and not (ROOT / module / "__main__.py").is_file()
    }
    dotted = set(re.findall(r"\brrs_jax(?:\.\w+)+", text))
    assert not missing | {name for name in dotted if not dotted_exists(name)}


@every_page
def test_links_lead_somewhere(page):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target or path in GENERATED_PAGES:
            continue
        file = (page.parent / path).resolve() if path else page
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M) if anchor else []
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            missing.append(target)
    assert not missing


def test_the_paper_stands_beside_its_code():
    text = (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`([\w/]+\.py:[\w.]+)`", text)
    assert len(pairs) > 50 and [pair for pair in pairs if not named_pair_exists(pair)] == []
    assert text.count(".py:") == len(pairs)  # each is written as the test reads it
    for part in ("1 to 3", "4 and 5", "6 to 8", "9, ΔV", "10, S", "11, V", "12, V", "13, ‖Δθ‖²", "L(θ)"):
        assert f"| {part}" in text
    for part in ("Basic", "Mirror", "Parallel", "figure 1", "figure 2", "figure 3", "table 1", "table 5"):
        assert f"| {part}" in text


def test_the_equations_are_called_where_the_page_says():
    text = (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
    table = text.partition("## Equations")[2].partition("## Sections")[0]
    checked = 0
    for row in re.findall(r"^\| .*", table, re.M)[1:]:
        *_, functions, callers = row.strip("| ").split(" | ")
        sources = [(ROOT / path).read_text() for path in re.findall(r"`([\w/]+\.py):", callers)]
        for name in re.findall(r"`rrs_jax/equations\.py:(\w+)`", functions):
            assert any(re.search(rf"(?<!def )\b{name}\(", source) for source in sources), row
            checked += 1
    assert checked > 10


def test_the_glossary_has_twelve_words():
    rows = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").count("\n| ") - 1
    assert rows == 12


# Results


def published(sweep: str) -> list[dict]:
    lines = (RESULTS / "mini" / f"{sweep}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines][1:]


RATES = {
    "answered, audio-text": ("modes", "audio_text", "asr"),
    "answered, text-only": ("modes", "text_only", "asr"),
    "answered, audio-only": ("modes", "audio_only", "asr"),
    "rewrites refused": ("orr", "rate"),
    "rewrites refused, text-only": ("orr_by_mode", "text_only", "orr", "rate"),
    "rewrites refused, audio-only": ("orr_by_mode", "audio_only", "orr", "rate"),
    "borderline refused": ("borderline_orr", "rate"),
    "borderline refused, text-only": ("orr_by_mode", "text_only", "borderline_orr", "rate"),
    "borderline refused, audio-only": ("orr_by_mode", "audio_only", "borderline_orr", "rate"),
    "NSI": ("nsi", "average"),
}


def rate_of(line: dict, path: tuple[str, ...]) -> float:
    return functools.reduce(lambda value, key: value[key], path, line)


def over_seeds(lines: list[dict], path: tuple[str, ...]) -> float:
    values = [rate_of(line, path) for line in lines]
    return sum(values) / len(values)


def tables_of(page: Path) -> list[tuple[str, list[list[str]]]]:
    """Sweep and cells of every table that stands behind `<!-- figures:SWEEP -->`."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"<!-- figures:(\w+) -->\n((?:\|.*\n)+)", text)
    return [
        (sweep, [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()])
        for sweep, table in found
    ]


def test_the_tables_of_reading_are_the_published_figures():
    checked = 0
    for sweep, (header, _, *rows) in tables_of(ROOT / "docs" / "reading.md"):
        lines = published(sweep)
        for row in rows:
            named = re.search(r"`(.+?)`", row[0])[1]
            if header[0] == "setting":
                mode = row[1].replace("-", "_")
                expected = [
                    rate_of(line, ("modes", mode, "asr"))
                    for strategy in header[2:]
                    for line in lines
                    if line["evaluation"] == f"{strategy.strip('`')}-{named}"
                ]
                cells = row[2:]
            else:
                own = [line for line in lines if re.fullmatch(rf"{re.escape(named)}(-seed\d+)?", line["run"])]
                cells = [cell for cell in row[1:] if cell]
                expected = [
                    over_seeds(own, RATES[title]) for title, _ in zip(header[1:], cells, strict=False)
                ]
            assert len(cells) == len(expected) and cells
            for cell, value in zip(cells, expected, strict=True):
                assert float(cell) == pytest.approx(value, abs=0.0501), (sweep, row[0], cell)
                checked += 1
    assert checked > 120


def test_results_are_small_and_readable():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= RESULTS_BYTES
    sweeps = sorted(path.stem for path in RESULTS.glob("mini/*.jsonl"))
    assert {"paper", "limits", "plus_fresh"} <= set(sweeps)
    for sweep in sweeps:
        lines = published(sweep)
        assert lines and all({"run", "strategy", "seed", "modes"} <= line.keys() for line in lines)
        assert not any("by_category" in line for line in lines)
    listed = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(f"{sweep}.jsonl" in listed or sweep.startswith("plus") for sweep in sweeps)


def test_reading_is_short():
    lines = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= READING_LINES


def test_the_readme_has_the_published_headline():
    """Its table and its picture are what `python docs/headline.py` makes of the published figures."""
    headline = script("headline")
    head, lines = headline.read(headline.RESULTS)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- table:headline -->\n{headline.table(lines)}<!-- /table -->" in text
    assert headline.PICTURE.read_text(encoding="utf-8") == headline.picture(head, lines)
    assert "](docs/tradeoff.svg)" in text and headline.PICTURE.stat().st_size < 150_000
    by_hand = [line["modes"]["audio_only"]["asr"] for line in lines if line["run"].split("-seed")[0] == "rrs"]
    assert len(by_hand) == 3 and f"**{sum(by_hand) / 3:.1f}**" in headline.table(lines)


def test_the_readme_is_short():
    """One screen: what it is, two commands, a table of results, one of what it takes; the rest is linked."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(prose(text).split()) < 750 and text.count("\n## ") <= 4


# The site


def hook(name: str):
    spec = importlib.util.spec_from_file_location(
        f"docs_hooks_{name}", ROOT / "docs" / "hooks" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_pages_have_every_public_name_and_the_navigation_every_page():
    pages = hook("api").api_pages(ROOT / "rrs_jax")
    face = re.findall(r"^## (\w+)$", pages["index"], re.M)
    assert face == [*[name for name in rrs_jax.__all__ if name != "__version__"], "Inside"]
    for dotted, name in (
        ("equations", "safety_vector"),
        ("report.table", "paste"),
        ("models.lora", "LoRAConfig"),
    ):
        page = pages.get(dotted.split(".")[0], pages["single_modules"])
        assert f"## rrs_jax.{dotted}\n" in page and f"### {name}\n" in page
    nav = {"nav": []}
    hook("api").on_config(nav)
    ((_, listed),) = nav["nav"][0].items()
    assert {path for entry in listed for path in entry.values()} == {
        f"api/{name}.md" for name in pages if name != "index"
    }


def test_a_docstring_is_markdown():
    api = hook("api")
    text = "Returns *args* and <b>.\n\nArgs:\n  one: first\n    line.\n  two, three: more.\nRaises `E`."
    text += "\n\nplan.py    code"
    assert api.markdown(text).split("\n\n") == [
        r"Returns \*args\* and \<b>.",
        "**Args:**",
        "- `one`: first line.\n- `two, three`: more.",
        "Raises `E`.",
        "```text\nplan.py    code\n```",
    ]
    short, long = ast.parse(
        "def f(a: int = 1): ...\ndef g(" + ", ".join(f"a{i}: dict[str, int]" for i in range(9)) + "): ..."
    ).body
    assert api.signature(short) == "f(a: int=1)"
    assert (
        api.signature(long).splitlines()[1] == "    a0: dict[str, int],"
        and len(api.signature(long).splitlines()) == 11
    )


def test_dead_links_of_a_site_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="a">x</h1><a href="sub/">s</a><a href="#a">a</a><img src="data:,">'
    )
    (tmp_path / "sub" / "index.html").write_text(
        '<a href="../#b">b</a><a href="../t.csv">t</a><a href="https://x.y">x</a>'
    )
    assert sorted(hook("dead_links").dead_links(tmp_path)) == [
        "sub/index.html: ../#b",
        "sub/index.html: ../t.csv",
    ]
