"""Settings as options of the command line, and what else a verb is given in words."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Sequence
from functools import cache, partial
from os.path import abspath, basename, isdir
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unscanned import settings
from unscanned.benchmark.workload import Workload
from unscanned.errors import SettingsError
from unscanned.schema import Schema

__all__ = [
    "HowOptions",
    "Options",
    "PrepareOptions",
    "SpreadOptions",
    "WorkloadOptions",
    "in_help",
    "named_folders",
    "overrides",
    "resolve",
]

Default = Callable[[Any], str | None]
"""Makes of an option's default what the help shows of it; of None, where a preset stands behind the option."""


def in_help(value: Any) -> str | None:
    """Return how the help writes a default: as it is typed; None for what goes without saying.

    Example:
        >>> in_help(("PD", "T2")), in_help(4), in_help(False), in_help(())
        ('PD T2', '4', None, None)
    """
    if value is None or value is False or value == () or value == {}:
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _of_presets(table: str, key: str, _: Any) -> str | None:
    """Return the default of a setting: that of the preset that verbs take, and those of the presets that differ."""

    def value(name: str) -> str | None:
        found = getattr(getattr(_preset(name), table), key)
        if isinstance(found, bool):
            return "on" if found else "off"
        return "unset" if found is None else in_help(found)

    usual = value(settings.Settings().preset)
    others = [f"{name}: {value(name)}" for name in settings.preset_names() if value(name) != usual]
    return "; ".join([usual, *others]) if usual else None


@cache
def _preset(name: str) -> settings.Settings:
    return settings.resolve(name)


def _options(schema: type[Schema], default: Callable[[str], Default], *, has_values: bool = False) -> Any:
    """Return a twin of a schema as options of the command line.

    Args:
        schema: A table.
        default: What the help shows of the default of a key.
        has_values: Whether an option that is not given has the value of the schema; otherwise it is None, so that a
            preset or a model can stand behind it.
    """
    fields: list[tuple[str, Any, Any]] = []
    for name, field in schema.model_fields.items():
        hint = typing.cast(Any, field.annotation)
        if hint == settings.OwnOptions:
            hint = dict[str, str]  # as words: no union tells 1, 1.0 and true apart as `_typed` does
        option = Parameter(
            name=_names(schema, name),
            help=field.description,
            negative=None if hint is bool else (),
            consume_multiple=Ellipsis in typing.get_args(hint),
            show_default=default(name),
        )
        fields.append((name, Annotated[hint | None, option], field.default if has_values else None))
    return _twin(schema, fields)


def _tables(*names: str) -> Any:
    """Return tables of the settings as options, such as `--training.epochs 3`; every value is None unless given."""
    fields = []
    for name in names:
        table = typing.cast(type[Schema], settings.Settings.model_fields[name].annotation)
        twin = _options(table, lambda key, name=name: partial(_of_presets, name, key))  # type: ignore[misc]
        fields.append((name, twin, dataclasses.field(default_factory=twin)))
    return _twin(settings.Settings, fields)


def _names(schema: type[Schema], key: str) -> list[str] | None:
    """Return all names of a setting that has a short one; None where the table and the key are its name."""
    if schema is settings.Data:  # which verbs without the other settings have too
        return [f"--data.{key}", f"--{key}"]
    if (schema, key) == (settings.Training, "start"):
        return ["--training.start", "--from"]
    return None


def _twin(schema: type[Schema], fields: list[tuple[str, Any, Any]]) -> Any:
    # Without a module of its own, cyclopts takes the class for a built-in type and does not look inside.
    return dataclasses.make_dataclass(schema.__name__, fields, namespace={"__module__": __name__})


Options: Any = _tables(*(name for name in settings.Settings.model_fields if name != "preset"))
"""Settings as options."""

PrepareOptions: Any = _tables("data", "prepare")
"""The settings that prepared volumes depend on."""

HowOptions: Any = _options(settings.Synthesis, lambda _: in_help)
"""The table `synthesis` as options, such as `--stride 4`."""

SpreadOptions: Any = _options(settings.Spread, lambda key: lambda _: in_help(settings.Spread.model_fields[key].default))
"""What scanners of simulated subjects are drawn from as options, such as `--spread.brain 1`."""

WorkloadOptions: Any = _options(Workload, lambda _: in_help, has_values=True)
"""What the benchmark times as options, such as `--edge 64`."""


def overrides(given: Any) -> dict[str, Any]:
    """Return the options that were given as nested dicts."""
    if given is None:
        return {}
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    nested = {k: overrides(v) if dataclasses.is_dataclass(v) else v for k, v in values.items() if v is not None}
    own = {k: {name: _typed(word) for name, word in v.items()} for k, v in nested.items() if k == "options"}
    return {k: v for k, v in {**nested, **own}.items() if v != {}}


def _typed(word: str) -> Any:
    """Return what a word stands for in JSON, a number, true, false or a list, and otherwise itself."""
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word


def resolve(preset: str | None, file: Path | None, given: Any) -> settings.Settings:
    """Return the settings of a preset, a file and the options given."""
    return settings.resolve(preset, file, overrides(given))


def named_folders(entries: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each NAME=FOLDER; where no name is given, the folder's own.

    Raises:
        SettingsError: Two folders have one name.
    """
    folders: dict[str, Path] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if not equals or "/" in name or isdir(entry):
            name, folder = basename(abspath(entry)), entry
        if name in folders:
            raise SettingsError(
                "two folders have one name",
                where=name,
                found=f"{folders[name]} and {folder}",
                do="Name them apart: NAME=FOLDER.",
            )
        folders[name] = Path(folder)
    return folders
