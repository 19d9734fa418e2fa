"""Every strategy once: its name, the file that holds it, and which stages it has. Imports nothing heavy."""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Entry:
    """`module`: of `rrs_jax.strategies`, None for the model as it is. `trains`: whether it has adapters; `extracts`:
    whether it asks the frozen model for something first."""

    what: str
    module: str | None
    trains: bool = True
    extracts: bool = True


STRATEGY_TABLE = {
    "vanilla": Entry("the model as it is", None, trains=False, extracts=False),
    "rrs": Entry("reshapes the representation space (section 4)", "rrs"),
    "rrs_plus": Entry("rrs with the values of PLUS where a field has its default", "rrs"),
}

# Fields that `rrs_plus` sets; another value than the field's default wins over them.
PLUS: dict[str, object] = {
    "data.everyday": None,
    "data.contrast": None,
    "rrs.benign_target": "keep",
}


def entry_of(strategy: str) -> Entry:
    return STRATEGY_TABLE[strategy]


def load_strategy(strategy: str):
    """The strategy's module: `extract(work)` and `build(work)`, see `rrs_jax.strategies`."""
    return importlib.import_module(f"rrs_jax.strategies.{STRATEGY_TABLE[strategy].module}")
