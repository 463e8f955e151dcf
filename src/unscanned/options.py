"""What the command line's verbs share: settings as options, progress bars, signals, and what is printed."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import signal
import sys
import tempfile
import threading
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from unscanned import settings as config
from unscanned.datasets.split import read_split
from unscanned.errors import DatasetError, Interrupted, PartialFailure, SettingsError, listed
from unscanned.files import write_json
from unscanned.machine.provenance import version
from unscanned.progress import Progress

__all__ = ["Layout", "Options", "Stop", "read_split", "version"]

Layout = Literal["auto", "bids", "ixi", "csv"]

_SHOWN = 10
"Cases that a line names before it only counts them."


def _documentation() -> dict[str, dict[str, str]]:
    """Return the string below each field of each class of `config`, which is where a field's meaning stands."""
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {}
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found.setdefault(node.name, {})[ast.unparse(field.target)] = ast.literal_eval(text.value)
    return found


def _optional(settings: type, documentation: Mapping[str, Mapping[str, str]]) -> type:
    """Return a twin of a settings class; its values are None until given on the command line."""
    hints = typing.get_type_hints(settings)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            twin = _optional(typing.cast(type, hint), documentation)
            fields.append((field.name, twin, dataclasses.field(default_factory=twin)))
        elif field.name != "preset":
            text = documentation[settings.__name__][field.name]
            negative = None if hint is bool else ()
            fields.append((field.name, Annotated[hint | None, Parameter(help=text, negative=negative)], None))
    # Without a module of its own, cyclopts takes the class for a built-in type and does not look inside.
    return dataclasses.make_dataclass(settings.__name__, fields, namespace={"__module__": __name__})


Options: Any = _optional(config.Settings, _documentation())
"""Settings as options, such as `--training.epochs 3`; every value is None unless given."""


def overrides(given: Any) -> dict[str, Any]:
    """Return the options that were given as nested dicts."""
    if given is None:
        return {}
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    nested = {k: overrides(v) if dataclasses.is_dataclass(v) else v for k, v in values.items() if v is not None}
    return {k: v for k, v in nested.items() if v != {}}


def resolve(preset: str, file: Path | None, given: Any) -> config.Settings:
    """Return the settings of a preset, a file and the options given."""
    return config.resolve(preset, file, overrides(given))


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


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a progress function that draws a bar with the time left on standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        last: tuple[int, int] = (0, 0)

        def show(done: int, total: int, label: str) -> None:
            nonlocal last
            if total != last[1] or done < last[0]:
                bars.reset(task, total=total)
            last = (done, total)
            bars.update(task, completed=done, total=total, description=escape(label))

        yield show


@contextlib.contextmanager
def computing(device: str = "auto") -> Iterator[tuple[Progress, Stop]]:
    """Yield a progress function and what says when to stop, for verbs that run networks in this process.

    Args:
        device: As it was asked for; where auto means the CPU, it is said.
    """
    import torch

    from unscanned.machine.memory import keep_freed_memory

    if device == "auto" and not torch.cuda.is_available():
        complain("PyTorch sees no CUDA device, so the CPU is used")
    keep_freed_memory()
    with progress() as report, Stop() as stop:
        yield report, stop


class Stop:
    """Turns the first SIGINT or SIGTERM into "stop after this step"; the second raises `KeyboardInterrupt(signal)`."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        is_ending = isinstance(error, Interrupted) and self.signal is not None
        for number, handler in self._before.items():
            # A late second signal must not cut off the message that the state is saved.
            signal.signal(number, signal.SIG_IGN if is_ending else handler)
        if isinstance(error, Interrupted) and self.signal is not None:
            error.exit_code = 128 + self.signal

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt(number)
        self.signal = number
        complain("stopping after this step; once more to stop at once")


def say(text: str) -> None:
    """Print a result."""
    print(text)


def complain(text: str) -> None:
    """Print a message on standard error."""
    print(f"unscanned: {text}", file=sys.stderr)


def complain_of(message: Warning | str, *place: object, **more: object) -> None:
    """Print a warning of the library on standard error; what `warnings.showwarning` is set to."""
    complain(f"warning: {message}")


def complain_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Print in a line that a thread could not write; what `threading.excepthook` is set to.

    TensorBoard writes in a thread of its own, and a log is never fatal.
    """
    if isinstance(failed.exc_value, OSError):
        complain(f"warning: {failed.exc_value}")
    else:
        threading.__excepthook__(failed)


def complain_of_incomplete(incomplete: Mapping[str, str]) -> None:
    """Print on standard error how many cases lack a contrast, and the first of them: a line for each contrast.

    Args:
        incomplete: What each case lacks, such as "no T2 scan".
    """
    for lack in dict.fromkeys(incomplete.values()):
        cases = [case for case, found in incomplete.items() if found == lack]
        shown = ", ".join(cases[:_SHOWN]) + (f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else "")
        have, are = ("has", "is") if len(cases) == 1 else ("have", "are")
        complain(f"{_count(len(cases), 'case')} {have} {lack} and {are} left out: {shown}")


def say_verification(result: Any) -> None:
    """Print what `verify` found.

    Raises:
        PartialFailure: The volume is not what its model makes of its scan.
    """
    for reason in result.reasons:
        complain(reason)
    difference = f"a largest difference of {result.difference:.2g} of the intensity scale"
    if result.verdict == "different":
        raise PartialFailure(
            "not what the model makes of the scan",
            where=result.volume,
            found=difference,
            expected=f"at most {result.tolerance:g}",
            do="Make it again with unscanned synthesize --overwrite.",
        )
    if result.verdict == "identical":
        say("identical: bit for bit what the model makes of the scan")
    else:
        say(f"within tolerance: {difference}; other devices, threads and versions may make {result.tolerance:g}")


def say_settings(settings: config.Settings) -> None:
    """Print resolved settings as TOML."""
    print(config.to_toml(settings))


def say_scores(evaluation: Any) -> None:
    """Print the table of the arms: mean (SD) over the subjects, inside the head."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("arm", "MAE", "PSNR nie", "PSNR", "SSIM", "n", title="inside the head, mean (SD) over test subjects")
    for arm in evaluation.arms:
        cells = [evaluation.content["arms"][arm]["head"][name] for name in ("mae", "psnr_nie", "psnr", "ssim")]
        table.add_row(escape(arm), *map(_cell, cells), str(cells[0]["n"]))
    Console().print(table)


def _cell(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "-"
    return f"{summary['mean']:.3f}" + (f" ({summary['sd']:.3f})" if summary["sd"] is not None else "")


def say_findings(
    dataset: Path, pairs: Sequence[Any], findings: Sequence[Any], source: str, target: str, json: Path | None
) -> None:
    """Print the findings of a dataset as a table.

    Raises:
        DatasetError: A case is unusable.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    unusable = sorted({finding.case for finding in findings if finding.severity == "error"})
    usable = [pair for pair in pairs if pair.case not in unusable]
    subjects = len({pair.subject for pair in usable})
    if findings:
        table = Table("case", "severity", "fault", "message")
        for finding in findings:
            table.add_row(*map(escape, (finding.case, finding.severity, finding.fault, finding.message)))
        Console().print(table)
    say(
        f"{_count(len(usable), 'usable pair')} {source} -> {target} of {_count(subjects, 'subject')}, "
        f"{_count(len(unusable), 'unusable case')}"
    )
    if json is not None:
        write_json(
            json,
            {
                "dataset": str(dataset),
                "source": source,
                "target": target,
                "usable": [pair.case for pair in usable],
                "unusable": unusable,
                "findings": [
                    {**dataclasses.asdict(finding), "path": str(finding.path) if finding.path else None}
                    for finding in findings
                ],
            },
        )
    if unusable or not usable:
        raise DatasetError(
            "some cases are unusable" if usable else "no case is usable",
            where=dataset,
            found=listed(unusable) or "no pair",
            do="Mend or remove them; training leaves out what it cannot use and says so.",
        )


def write_crash(text: str) -> Path:
    """Write a traceback to a file of its own and return its path."""
    handle, name = tempfile.mkstemp(prefix="unscanned-crash-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"unscanned {version()}\n{' '.join(sys.argv)}\n\n{text}")
    return Path(name)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
