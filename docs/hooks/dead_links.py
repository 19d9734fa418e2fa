"""A hook of mkdocs: a build fails where a link of the site leads nowhere, also one of the report page."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


def on_post_build(config):
    """Looks at every page of the built site."""
    if missing := dead_links(Path(config["site_dir"])):
        from mkdocs.exceptions import PluginError

        raise PluginError("links that lead nowhere: " + "; ".join(missing))


def dead_links(site: Path) -> list[str]:
    """Returns `page: link` for each link within the site whose file or anchor is missing."""
    pages = {path: _read(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    missing = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else None
            if not target.is_file() or (
                parts.fragment and anchors is not None and parts.fragment not in anchors
            ):
                missing.append(f"{path.relative_to(site)}: {link}")
    return missing


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links |= {values[name] for name in ("href", "src") if values.get(name)}


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
