"""Settings as options of the command line, and what else a verb is given in words."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unscanned import settings
from unscanned.errors import SettingsError
from unscanned.schema import Schema

__all__ = ["HowOptions", "Options", "named_folders", "overrides", "resolve"]


def _optional(schema: type[Schema]) -> Any:
    """Return a twin of a schema as options of the command line; its values are None until given."""
    fields: list[tuple[str, Any, Any]] = []
    for name, field in schema.model_fields.items():
        hint = field.annotation
        if isinstance(hint, type) and issubclass(hint, Schema):
            twin = _optional(hint)
            fields.append((name, twin, dataclasses.field(default_factory=twin)))
        elif name != "preset":
            negative = None if hint is bool else ()
            option = Parameter(help=field.description, negative=negative)
            fields.append((name, Annotated[typing.cast(Any, hint) | None, option], None))
    # Without a module of its own, cyclopts takes the class for a built-in type and does not look inside.
    return dataclasses.make_dataclass(schema.__name__, fields, namespace={"__module__": __name__})


Options: Any = _optional(settings.Settings)
"""Settings as options, such as `--training.epochs 3`; every value is None unless given."""

HowOptions: Any = _optional(settings.Synthesis)
"""The table `synthesis` as options, such as `--stride 4`."""


def overrides(given: Any) -> dict[str, Any]:
    """Return the options that were given as nested dicts."""
    if given is None:
        return {}
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    nested = {k: overrides(v) if dataclasses.is_dataclass(v) else v for k, v in values.items() if v is not None}
    return {k: v for k, v in nested.items() if v != {}}


def resolve(preset: str, file: Path | None, given: Any) -> settings.Settings:
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
        if not equals:
            name, folder = Path(entry).resolve().name, entry
        if name in folders:
            raise SettingsError(
                "two folders have one name",
                where=name,
                found=f"{folders[name]} and {folder}",
                do="Name them apart: NAME=FOLDER.",
            )
        folders[name] = Path(folder)
    return folders
