"""Values declared once, a field at a time, and checked on the way in: settings, options of networks, files on disk.

A field is its type, its bounds, its default and, in the string below it, its meaning. Errors, help texts and the
reference page all follow from that declaration. pydantic does the checking; it was chosen over msgspec, which starts
0.08 s earlier, because it tells where and why a value is refused as data, for all fields at once, not as a sentence.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from unscanned.errors import SettingsError, UnscannedError, quoted

__all__ = ["Schema", "describe", "near", "read"]

S = TypeVar("S", bound="Schema")


class Schema(BaseModel):
    """A frozen value: unknown keys are refused, types are not converted, and NaN and infinity are no numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def read(
    kind: type[S],
    content: Any,
    *,
    where: str = "",
    noun: str = "setting",
    is_json: bool = False,
    error: type[UnscannedError] = SettingsError,
) -> S:
    """Return the value that JSON or TOML content stands for.

    Args:
        kind: What it should be.
        content: Nested mappings and plain values.
        where: File or option that it came from, for the message.
        noun: What a key is called in messages.
        is_json: Whether the content is a JSON file's, in which a dataclass is an object and a tuple is a list.
        error: What to raise.

    Raises:
        UnscannedError: Of the class `error`: an unknown key, with the near one, or a value of the wrong type or out of
            bounds. Names the key, what was found and what is allowed.

    Example:
        >>> class Brush(Schema):
        ...     width: int = 1
        >>> read(Brush, {"widht": 2})
        Traceback (most recent call last):
        unscanned.errors.SettingsError: widht: unknown setting; expected one of width. Did you mean width?
    """
    try:
        return kind.model_validate_json(json.dumps(content)) if is_json else kind.model_validate(content)
    except ValidationError as failure:
        faults = failure.errors(include_url=False)
        told = _explain(kind, faults[0], noun)
        first, *others = dict.fromkeys(_place(kind, fault["loc"]) for fault in faults)
        if others:
            told["do"] = " ".join(filter(None, (told.get("do"), f"Refused too: {', '.join(others)}.")))
        place = ": ".join(filter(None, (where, first)))
        raise error(told.pop("what"), where=place or None, **told) from failure


def describe(hint: Any) -> str:
    """Return a type in words, such as "integer or unset"."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(map(describe, typing.get_args(hint)))
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(parts[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {describe(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} times {describe(parts[0])}"
    if origin in (dict, list):
        return "table" if origin is dict else f"list of {describe(parts[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "unset", Path: "path"}
    return names.get(hint) or ("table" if _is_schema(hint) else str(getattr(hint, "__name__", hint)))


def near(name: str, known: Iterable[str], *, least: float = 0.5) -> str | None:
    """Return the question whether a known name was meant; None where none is as alike as `least`, from 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=least)
    return f"Did you mean {close[0]}?" if close else None


def _explain(kind: type[Schema], failure: ErrorDetails, noun: str) -> dict[str, Any]:
    owner, hint, _ = _declaration(kind, failure["loc"])
    bounds, key = failure.get("ctx", {}), str(failure["loc"][-1]) if failure["loc"] else ""
    match failure["type"]:
        case "extra_forbidden":
            known = [field.alias or name for name, field in owner.model_fields.items()]
            return {"what": f"unknown {noun}", "expected": f"one of {', '.join(known)}", "do": near(key, known)}
        case "missing" if not isinstance(failure["loc"][-1], int):
            return {"what": f"a {noun} is missing", "expected": describe(hint)}
        case "model_type" | "dict_type" | "model_attributes_type":
            return {"what": "not a table", "found": quoted(failure["input"])}
        case "greater_than" if bounds["gt"] == 0:
            what = "must be positive"
        case "greater_than_equal" if bounds["ge"] == 0:
            what = "must not be negative"
        case "greater_than" | "greater_than_equal":
            what = f"must be {'above' if 'gt' in bounds else 'at least'} {next(iter(bounds.values()))}"
        case "less_than" | "less_than_equal":
            what = f"must be {'below' if 'lt' in bounds else 'at most'} {next(iter(bounds.values()))}"
        case "value_error":
            found = quoted(failure["input"])
            return {"what": str(bounds["error"]), "found": found if len(found) < 200 else None}
        case _:
            return {"what": "a value of the wrong kind", "found": quoted(failure["input"]), "expected": describe(hint)}
    return {"what": what, "found": failure["input"]}


def _declaration(kind: type[Schema], place: Sequence[int | str]) -> tuple[type[Schema], Any, int]:
    """Return the innermost schema on the way to a place, the type declared there, and how far the way is.

    For an item the type is that of the whole. What follows a choice of types is the name of one of them, and no place.
    """
    owner, hint = kind, typing.cast(Any, kind)
    for number, key in enumerate(place):
        if not isinstance(key, str) and number == len(place) - 1:
            break
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            continue
        if isinstance(hint, types.UnionType) and len(set(typing.get_args(hint)) - {types.NoneType}) > 1:
            return owner, hint, number
        inner = [part for part in (hint, *typing.get_args(hint)) if _is_schema(part) or dataclasses.is_dataclass(part)]
        if not inner or not isinstance(key, str):
            hint = inner[0] if inner else None
        elif _is_schema(inner[0]):
            owner = inner[0]
            fields = {field.alias or name: field.annotation for name, field in owner.model_fields.items()}
            hint = fields.get(key)
        else:
            hint = typing.get_type_hints(inner[0]).get(key)
    return owner, hint, len(place)


def _is_schema(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)


def _place(kind: type[Schema], place: Sequence[int | str]) -> str:
    return ".".join(key for key in place[: _declaration(kind, place)[2]] if isinstance(key, str))
