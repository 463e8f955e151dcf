"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import dataclasses
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unscanned.errors import BUG, BugError, DatasetError, PartialFailure, listed
from unscanned.files import write_json
from unscanned.settings import Settings, to_toml

_SHOWN = 10
"Cases that a line names before it only counts them."


_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"Characters that steer a terminal or turn the direction of text, as they may stand in a file's name."


def shown(text: str) -> str:
    """Return a text with all that could steer a terminal as escapes.

    Example:
        >>> shown("sub-01\x1b[2J")
        'sub-01\\\\x1b[2J'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_a_line(text: str) -> str:
    """Return a text that is shown in one line: line breaks, as they may stand in a file's name, are escapes too."""
    return shown(text).replace("\n", "\\n")


def say(text: str) -> None:
    """Print a result, in a line."""
    print(in_a_line(text))


def say_lines(text: str) -> None:
    """Print a result of several lines."""
    print(shown(text))


def complain(text: str) -> None:
    """Print a message on standard error."""
    print(f"unscanned: {in_a_line(text)}", file=sys.stderr)


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


def say_settings(settings: Settings) -> None:
    """Print resolved settings as TOML."""
    say_lines(to_toml(settings))


def say_scores(evaluation: Any) -> None:
    """Print the table of the arms: mean (SD) over the subjects, inside the head."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from unscanned.evaluation.metrics import METRICS
    from unscanned.evaluation.tables import mean_sd

    console = Console()
    metrics = {name: metric for name, metric in METRICS.items() if metric.in_short_tables}
    table = Table("arm", title="inside the head, mean (SD) over test subjects")
    for metric in metrics.values():
        heading = f"{metric.heading}\n{metric.unit}".strip()
        # Not every terminal has arrows.
        table.add_column(heading.encode("ascii", "ignore").decode() if console.options.ascii_only else heading)
    table.add_column("n")
    for arm, regions in evaluation.content.arms.items():
        summaries = regions["head"]
        cells = [mean_sd(summaries[name], metric.digits) for name, metric in metrics.items()]
        table.add_row(escape(in_a_line(arm)), *cells, str(next(iter(summaries.values())).n))
    console.print(table)
    allowed = {"noise-free": "noise allows", "tissues": "knowing each voxel's tissue allows"}
    for row in evaluation.content.comparisons:
        if row.against in allowed and (row.region, row.metric) == ("head", "psnr") and row.difference is not None:
            distance, side = abs(row.difference), "below" if row.difference < 0 else "above"
            say(f"{row.arm}: PSNR {distance:.1f} dB {side} what {allowed[row.against]}")


def say_findings(
    dataset: Path, pairs: Sequence[Any], findings: Sequence[Any], source: str, target: str, json: Path | None
) -> None:
    """Print the findings of a dataset as a table.

    Raises:
        BugError: A case could not be checked, for a reason that nobody foresaw.
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
            cells = finding.case, finding.severity, finding.fault, finding.message
            table.add_row(*(escape(in_a_line(cell)) for cell in cells))
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
    if any(finding.fault == "bug" for finding in findings):
        raise _met_bug()
    if unusable or not usable:
        raise DatasetError(
            "some cases are unusable" if usable else "no case is usable",
            where=dataset,
            found=listed(unusable) or "no pair",
            do="Mend or remove them; training leaves out what it cannot use and says so.",
        )


def raise_partial(failures: Mapping[str, Any], count: int | None) -> None:
    """Print the first failures and how many more there are, and raise that some cases failed, or all.

    Args:
        failures: The reason for each case.
        count: All cases; None where at least one did not fail.

    Raises:
        BugError: One failed in a way that nobody foresaw.
        PartialFailure: Some cases failed.
        DatasetError: All did.
    """
    if not failures:
        return
    _complain_of_first([str(error) if case in str(error) else f"{case}: {error}" for case, error in failures.items()])
    if any(isinstance(error, BugError) for error in failures.values()):
        raise _met_bug()
    if len(failures) == count:
        raise DatasetError("no case was usable, nothing was written")
    of = f" of {count}" if count is not None else ""
    raise PartialFailure(f"{len(failures)}{of} cases failed, the others were written")


def raise_failed_scores(evaluation: Any) -> None:
    """Print each volume that was not scored, and raise if there is one.

    Raises:
        BugError: One failed in a way that nobody foresaw.
        PartialFailure: There is one.
    """
    _complain_of_first([f"{failure.case}, {failure.arm}: {failure.reason}" for failure in evaluation.failures])
    if evaluation.met_bug:
        raise _met_bug()
    if evaluation.failures:
        raise PartialFailure(f"{len(evaluation.failures)} volumes were not scored, the others were")


def _complain_of_first(messages: Sequence[str]) -> None:
    for message in messages[:_SHOWN]:
        complain(message)
    if len(messages) > _SHOWN:
        complain(f"and {len(messages) - _SHOWN:,} more failed")


def _met_bug() -> BugError:
    return BugError(
        f"{BUG} in at least one case; the others went on", do="Please report it with the files named above."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
