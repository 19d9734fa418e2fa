"""The config of a run: every field with its default, and a record of the fields that were given."""

from typing import Any

from ml_collections import ConfigDict, FieldReference

from rrs_jax.config.fields import FIELDS


class RunConfig(ConfigDict):
    """A `ConfigDict`, or one of its groups, that records which of its fields were assigned.

    A field counts as given as soon as something assigns it, also its default again: a config file, an
    override on the command line, a sweep. Copies keep the record.
    """

    def __init__(self, *arguments, **options):
        self._record(set())
        super().__init__(*arguments, **options)

    def __setitem__(self, name: str, value: object) -> None:
        super().__setitem__(name, value)
        self._given.add(name)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._record(set(state["_given"]))

    def copy_and_resolve_references(self, visit_map=None) -> "RunConfig":
        copied = super().copy_and_resolve_references(visit_map)
        copied._record(set(self._given))
        return copied

    def _record(self, given: set[str]) -> None:
        object.__setattr__(self, "_given", given)  # ConfigDict's own would make it a field


def default_config() -> RunConfig:
    """Returns all fields with their defaults, none of them given.

    It is locked: a config file that misspells a field fails at that line.
    """
    config = RunConfig()
    for field in FIELDS.values():
        *groups, leaf = field.name.split(".")
        group = config
        for name in groups:
            if name not in group:
                group[name] = RunConfig()
            group = group[name]
        mixed = field.kind.type is object
        group[leaf] = FieldReference(field.default, field_type=object) if mixed else field.default
    _mark(config, given=False)
    return config.lock()


def given_fields(config: ConfigDict) -> set[str]:
    """Returns the dotted names of the fields that were given, all of them in a plain `ConfigDict`."""
    if not isinstance(config, RunConfig):
        return set(flatten(config))
    names = set()
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            names |= {f"{name}.{inner}" for inner in given_fields(value)}
        elif name in config._given:
            names.add(name)
    return names


def mark_all_given(config: ConfigDict) -> None:
    """Records every field of `config` as given."""
    _mark(config, given=True)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Returns plain values by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in (config.to_dict() if isinstance(config, ConfigDict) else config).items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _mark(config: ConfigDict, given: bool) -> None:
    if isinstance(config, RunConfig):
        config._record(set(config) if given else set())
        for value in config.values():
            if isinstance(value, ConfigDict):
                _mark(value, given)
