"""What is wrong with the words that were typed, as any other refusal says it."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from unscanned.errors import SettingsError, listed
from unscanned.schema import describe, near

__all__ = ["refusal", "refuse_fractions"]


def refuse_fractions(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 1.5 where an integer is wanted, which the parser of options would round. A hook (`config`) of its App.

    Raises:
        CoercionError: A value is a number, but no whole one.
    """
    for argument in arguments:
        kinds = set(_leaves(argument.hint))
        if int not in kinds or kinds & {float, str}:
            continue
        for token in argument.tokens:
            try:
                is_whole = float(token.value).is_integer()
            except ValueError:
                continue  # which the parser itself refuses, or knows, such as 0x10
            if not is_whole:
                raise CoercionError(argument=argument, token=token, target_type=int)


def _leaves(hint: Any) -> Iterator[Any]:
    """Yield the types that a type is made of."""
    parts = typing.get_args(hint)
    if not parts:
        yield hint
    for part in parts[:1] if typing.get_origin(hint) is Annotated else parts:
        yield from _leaves(part)


def refusal(error: CycloptsError) -> SettingsError:
    """Return the error of the parser of options as one of ours: what, where, found, expected, and what to do."""
    verb = " ".join(error.command_chain or ())
    see = f"See unscanned {verb} --help." if verb else "See unscanned --help."
    match error:
        case UnknownCommandError():
            names = sorted(name for name in error.app or () if not name.startswith("-"))
            typed = (error.unused_tokens or [""])[0]
            if typed.startswith("-"):
                return SettingsError("unknown option", where=typed, do=see)
            return SettingsError(
                "no such verb", where=typed, expected=f"one of {', '.join(names)}", do=near(typed, names)
            )
        case UnknownOptionError():
            typed = (error.token.keyword or error.token.value).partition("=")[0]
            known = [name for argument in error.argument_collection for name in argument.names]
            return SettingsError(
                "unknown option", where=typed, do=" ".join(filter(None, (near(typed, known, least=0.7), see)))
            )
        case CoercionError() if error.token is not None and error.target_type is not None:
            choices = typing.get_args(error.target_type)
            return SettingsError(
                "a value of the wrong kind",
                where=error.token.keyword or _name(error),
                found=f"'{error.token.value}'",
                expected=describe(error.target_type),
                do=near(error.token.value, map(str, choices)),
            )
        case MissingArgumentError() if error.argument is not None:
            count = error.argument.token_count()[0]
            if error.keyword is None and not error.argument.tokens:
                return SettingsError("must be given", where=_name(error), do=see)
            found = len(error.tokens_so_far)
            return SettingsError(
                "a value is missing" if count == 1 else "values are missing",
                where=error.keyword or _name(error),
                found=found if count > 1 else None,
                expected=count if count > 1 else None,
                do=see,
            )
        case RepeatArgumentError():
            return SettingsError("given more than once", where=error.token.keyword, do=see)
        case UnusedCliTokensError():
            return SettingsError("more words than the verb takes", found=listed(error.unused_tokens or ()), do=see)
    error.verbose = False
    return SettingsError(str(error).strip().rstrip("."), where=verb or None, do=see)


def _name(error: CycloptsError) -> str | None:
    """Return what the help calls an argument: in capitals where it is given without an option."""
    if error.argument is None:
        return None
    name = error.argument.name
    return name.lstrip("-").upper() if error.argument.index is not None else name
