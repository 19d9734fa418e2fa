"""A hook of mkdocs: the pages api/*.md, written from signatures and docstrings at every build.

The sources are read and not imported, so that a build needs neither JAX nor a model.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "rrs_jax"
FACE = "The Python interface"
SMALL = "single_modules"
MOST_LETTERS = 88  # of a signature on one line
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def on_config(config):
    """Adds the rooms' pages to the end of the navigation."""
    names = [name for name in api_pages(PACKAGE) if name not in ("index", SMALL)]
    config["nav"].append({"API": [{name: f"api/{name}.md"} for name in (*names, SMALL)]})
    return config


def on_files(files, config):
    """Adds the pages to mkdocs' files."""
    from mkdocs.structure.files import File

    for name, text in api_pages(PACKAGE).items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def api_pages(package: Path) -> dict[str, str]:
    """Returns the pages' Markdown by name: `index` for what the package exports, then one for each room."""
    rooms = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    single = [path for path in sorted(package.glob("*.py")) if path.stem not in ("__init__", "api")]
    pages = {"index": _face(package, rooms)}
    for room in rooms:
        modules = sorted((package / room).rglob("*.py"), key=lambda path: (path.stem != "__init__", path))
        pages[room] = _page(f"rrs_jax.{room}", [path for path in modules if path.stem != "__main__"], package)
    pages[SMALL] = _page("Single modules", single, package)
    return pages


def _face(package: Path, rooms: list[str]) -> str:
    """Returns the page of what `import rrs_jax` gives."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    parts = [f"# {FACE}", _example(ast.get_docstring(tree) or "")]
    for node in _exported(package / "api.py"):
        parts += [f"## {node.name}", *_described(node)]
    links = ", ".join(f"[{room}]({room}.md)" for room in rooms)
    parts.append(
        f"## Inside\n\nAll public functions and classes, by package: {links}, [single modules]({SMALL}.md)."
    )
    return "\n\n".join(parts) + "\n"


def _exported(path: Path) -> Iterator[Definition]:
    """Yields what a module exports in `__all__`, also what it takes from another module of the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    own = {node.name: node for node in _public(tree)}
    for node in (item for item in tree.body if isinstance(item, ast.ImportFrom)):
        taken = [
            alias.name for alias in node.names if (alias.asname or alias.name) in set(names) - own.keys()
        ]
        if taken:
            source = path.parent.parent.joinpath(*node.module.split(".")).with_suffix(".py")
            other = {one.name: one for one in _public(ast.parse(source.read_text(encoding="utf-8")))}
            own |= {name: other[name] for name in taken}
    yield from (own[name] for name in names)


def _example(doc: str) -> str:
    """Returns a docstring whose lines behind the first paragraph are code."""
    first, _, rest = doc.partition("\n\n")
    return f"{_text(first)}\n\n```python\n{rest}\n```"


def _page(title: str, modules: list[Path], package: Path) -> str:
    parts = [f"# {title}"]
    for path in modules:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = list(_public(tree))
        if not public and path.stem != "__init__":
            continue
        dotted = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        parts += [f"## {dotted}"] if dotted != title else []
        parts += [markdown(ast.get_docstring(tree) or "")]
        for node in public:
            parts += [f"### {node.name}", *_described(node)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _public(tree: ast.Module) -> Iterator[Definition]:
    """Yields functions and classes without a leading underscore that have a docstring."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_") and ast.get_docstring(node):
            yield node


def _described(node: Definition) -> list[str]:
    """Returns signature and docstring; of a class also its fields and public methods."""
    parts = [f"```python\n{signature(node)}\n```", markdown(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        methods = [
            f"- `{signature(method)}`: {_text(_first_sentence(ast.get_docstring(method)))}"
            for method in node.body
            if isinstance(method, ast.FunctionDef)
            and not method.name.startswith("_")
            and ast.get_docstring(method)
        ]
        parts.append("\n".join(methods))
    return [part for part in parts if part]


def signature(node: Definition) -> str:
    """Returns a definition's first lines as Python, a long one with a line for each parameter."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
        head = f"class {node.name}({bases})" if bases else f"class {node.name}"
        return "\n    ".join([head + (":" if fields else ""), *fields])
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({ast.unparse(node.args)}){returns}"
    if len(line) <= MOST_LETTERS:
        return line
    return f"{node.name}(\n    " + ",\n    ".join(_parameters(node.args)) + f",\n){returns}"


def _parameters(arguments: ast.arguments) -> list[str]:
    """Returns the parameters as a signature has them, one by one."""
    text, depth, parts = ast.unparse(arguments), 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def markdown(doc: str) -> str:
    """Returns a docstring as Markdown: sections `Args:` and the like as lists, aligned lines as code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", doc):
        lines = paragraph.splitlines()
        start = next((i for i, line in enumerate(lines) if re.fullmatch(r"[A-Z][\w ]*:", line)), len(lines))
        indented = [line for line in lines[start + 1 :] if line.startswith(" ")]
        if start < len(lines) and indented:
            behind = lines[start + 1 + len(indented) :]
            parts += [_block(lines[:start]), f"**{lines[start]}**\n\n" + _entries(indented), _block(behind)]
        else:
            parts.append(_block(lines))
    return "\n\n".join(part for part in parts if part)


def _block(lines: list[str]) -> str:
    if any(line.startswith("    ") or re.search(r"\S {3,}\S", line) for line in lines):
        return "```text\n" + "\n".join(lines) + "\n```"
    return _text(" ".join(line.strip() for line in lines))


def _entries(lines: list[str]) -> str:
    """Returns the entries `name: text`, whose further lines are indented deeper, as a list."""
    least = min(len(line) - len(line.lstrip()) for line in lines)
    entries: list[str] = []
    for line in lines:
        if len(line) - len(line.lstrip()) == least:
            entries.append(line.strip())
        else:
            entries[-1] += f" {line.strip()}"
    named = [re.sub(r"^([\w*, ./]+?):", r"`\1`:", entry) for entry in entries]
    return "\n".join(f"- {_text(entry)}" for entry in named)


def _text(text: str) -> str:
    """Returns text in which only code marks are Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", part) for part in parts)


def _first_sentence(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n")[0].split())
