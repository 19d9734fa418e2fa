"""The report page's sections on how its runs were made: their configs, machines and versions."""

import html
import json

from rrs_jax.config import FIELDS
from rrs_jax.report import figures
from rrs_jax.report.results import Results


def config(results: Results) -> str:
    """Shows the configs: of one run what differs from the defaults, of several what differs between them."""
    recipes = list(
        {recipe.runs[0].path: recipe for recipe in (*results.recipes, *results.everything)}.values()
    )
    configs = [recipe.config for recipe in recipes]
    names = list(
        dict.fromkeys(name for config in configs for name in config if name not in ("run_dir", "seed"))
    )
    differing = [name for name in names if len({json.dumps(config.get(name)) for config in configs}) > 1]
    parts = []
    if differing:
        rows = [("Field", *(recipe.name for recipe in recipes))]
        rows += [(name, *(_value(config.get(name)) for config in configs)) for name in differing]
        parts.append("<h3>Differences between runs</h3>" + figures.table_of(rows))
    common = [
        (name, _value(configs[0].get(name)))
        for name in names
        if name not in differing
        and (name not in FIELDS or _value(configs[0].get(name)) != _value(FIELDS[name].default))
    ]
    if common:
        parts.append(
            "<h3>Other values than the defaults</h3>" + figures.table_of([("Field", "Value"), *common])
        )
    return "".join(parts)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def made(results: Results) -> str:
    """Shows where, when and with which versions each run was made."""
    rows = [("Run", "Seed", "Started", "Commit", "Device", "Seconds of each stage")]
    versions: dict[str, str] = {}
    runs = {run.path: run for recipe in results.everything for run in recipe.runs}
    for run in runs.values():
        last = run.sessions[-1] if run.sessions else {}
        device = last.get("device", {})
        versions |= last.get("versions", {})
        started = str(last.get("started", "–"))[:16].replace("T", " ")
        rows.append(
            (
                run.name,
                str(run.config.get("seed")),
                started,
                str(last.get("commit") or "–")[:18],
                f"{device.get('count', '–')} {device.get('kind', '')}",
                ", ".join(f"{k} {v:.0f}" for k, v in run.seconds.items()),
            )
        )
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return figures.table_of(rows) + f"<p>{html.escape(shown)}</p>"
