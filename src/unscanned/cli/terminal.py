"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

from unscanned.display import in_a_line, shown
from unscanned.errors import (
    BUG,
    BugError,
    CheckpointError,
    DatasetError,
    PartialFailure,
    ResourceError,
    UnscannedError,
    in_words,
    listed,
)
from unscanned.files import write_json, write_text
from unscanned.outputs import claim, json_with
from unscanned.settings import Settings, to_toml, toml_of

_SHOWN = 10
"Cases that a line names before it only counts them."


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
        complain(f"warning: {in_words(failed.exc_value)}")
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


def say_settings(settings: Settings, cost: Any = None) -> None:
    """Print resolved settings as TOML, with what they cost as comments."""
    comments = "" if cost is None else "\n# What it costs:\n" + "".join(f"# {line}\n" for line in cost.lines())
    say_lines(to_toml(settings) + comments)


def say_scores(evaluation: Any) -> None:
    """Print the table of the arms: mean (SD) over the subjects, inside the head; and of their PSNR in each tissue."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from unscanned.evaluation.cases import ALLOWED
    from unscanned.evaluation.metrics import METRICS
    from unscanned.evaluation.tables import mean_sd, seed_range, tissues

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
    shown = METRICS["psnr"]
    arms = {arm: regions for arm, regions in evaluation.content.arms.items() if arm not in evaluation.content.members}
    if named := tissues(evaluation.content):
        table = Table("tissue", title=f"PSNR by tissue, {shown.unit}, mean over test subjects")
        for arm in arms:
            table.add_column(escape(in_a_line(arm)))
        for region, name in named.items():
            means = [regions[region]["psnr"].mean for regions in arms.values()]
            table.add_row(escape(in_a_line(name)), *("-" if m is None else f"{m:.{shown.digits}f}" for m in means))
        console.print(table)
    for arm, regions in evaluation.content.spread.items():
        apart = regions["head"]["psnr"]
        words = (
            f"{apart.n} seeds, SD [lowest, highest] of the mean PSNR: {seed_range(apart, shown.digits)} {shown.unit}"
        )
        say(f"{arm}: {words}")
    for row in evaluation.content.comparisons:
        if row.against in ALLOWED and (row.region, row.metric) == ("head", "psnr") and row.difference is not None:
            distance, side = abs(row.difference), "below" if row.difference < 0 else "above"
            say(f"{row.arm}: PSNR {distance:.1f} dB {side} what {ALLOWED[row.against]}")
    found = evaluation.content.warnings
    for text in found[:_SHOWN]:
        complain(f"warning: {text}")
    if len(found) > _SHOWN:
        complain(f"{len(found) - _SHOWN} warnings more stand in {evaluation.folder / 'evaluation.json'}")


def say_models(models: Sequence[Any], file: Path | None) -> None:
    """Print the table of the models that have a name, and write it to a JSON file where one is given.

    Raises:
        PartialFailure: Some models cannot be used; the others are shown.
        CheckpointError: None can.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown, failures = [], {}
    for model in models:
        try:
            shown.append(_facts_of_model(model))
        except UnscannedError as error:
            failures[model.name] = error
    if file is not None:
        write_json(file, {"models": shown})
    if shown:
        table = Table()
        for heading in ("name", "makes", "size", "voxels", "score", "sha256", "where"):
            table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "sha256"))
        for facts in shown:
            table.add_row(*(escape(in_a_line(cell)) for cell in _row_of_model(facts)))
        Console().print(table)
        say("next: unscanned models NAME, or unscanned synthesize NAME SCAN -o OUT")
    elif not failures:
        say("no models: none is on the shelf, and none was fetched")
        say("unscanned train makes one from your own pairs; unscanned fetch model takes one from an address")
    if failures:
        _complain_of_first([str(error) for error in failures.values()])
        if not shown:
            raise CheckpointError("no model can be used", found=f"{len(failures)} that cannot")
        raise PartialFailure(f"{len(failures)} of {len(models)} models cannot be used, the others are listed")


def say_model(model: Any, file: Path | None) -> None:
    """Print the card of a model, and write it to a JSON file where one is given."""
    from unscanned.synthesis.card import written_card

    facts = _facts_of_model(model)
    if file is not None:
        write_json(file, {"models": [facts]})
    rows = [*zip(("name", "makes", "size", "voxels", "where"), _first_rows(facts), strict=True), *written_card(model)]
    width = max(len(heading) for heading, _ in rows)
    for heading, text in rows:
        say(f"{heading:<{width}}  {text}")


def _facts_of_model(model: Any) -> dict[str, Any]:
    """Return what is shown of a model, as JSON values; its files are checked."""
    model.check()
    card = model.card
    return {
        "name": model.name,
        "source": model.record.source,
        "target": model.record.target,
        "bytes": model.size_bytes,
        "spacing_mm": model.settings.prepare.spacing_mm,
        "sha256": model.sha256,
        "where": model.origin,
        "folder": str(model.folder),
        "url": model.entry.url,
        "card": None if card is None else card.to_json(),
    }


def _row_of_model(facts: Mapping[str, Any]) -> tuple[str, ...]:
    card = facts["card"] or {"scores": []}
    scores = [f"PSNR {each['mean']:.1f} dB, {each['domain']}" for each in card["scores"] if each["metric"] == "psnr"]
    return (
        facts["name"],
        _makes(facts),
        _size(facts["bytes"]),
        _voxels(facts),
        next(iter(scores), "none"),
        facts["sha256"][:8],
        facts["where"],
    )


def _first_rows(facts: Mapping[str, Any]) -> tuple[str, ...]:
    where = f"{facts['where']}: {facts['folder']}"
    return facts["name"], _makes(facts), _size(facts["bytes"]), _voxels(facts), where


def _makes(facts: Mapping[str, Any]) -> str:
    return f"{facts['target']} from {facts['source']}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _voxels(facts: Mapping[str, Any]) -> str:
    spacing_mm = facts["spacing_mm"]
    return "the scan's own" if spacing_mm is None else f"{spacing_mm:g} mm"


def say_choice(choice: Any) -> None:
    """Print on standard error which model was picked for which scans, and why."""
    scans = listed([scan.name for scan, _ in choice.scans])
    complain(f"model {choice.model.name} for {scans}: {choice.reason}")


def say_examination(found: Any) -> None:
    """Print what `check` found: a summary, then the findings as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    subjects = len({pair.subject for pair in found.usable})
    say(
        f"{_count(len(found.usable), 'usable pair')} {found.source} -> {found.target} of "
        f"{_count(subjects, 'subject')}, {_count(len(found.unusable), 'unusable case')}"
    )
    for name, text in _summary(found):
        say(f"{name:<10} {text}")
    if found.findings:
        table = Table()
        for heading in ("case", "file", "severity", "fault", "message"):
            table.add_column(heading, overflow="fold")  # a name that is cut short names nothing
        for finding in found.findings:
            file = "" if finding.path is None else finding.path.name
            cells = finding.case, file, finding.severity, finding.fault, finding.message
            table.add_row(*(escape(in_a_line(cell)) for cell in cells))
        Console().print(table)


def _summary(found: Any) -> list[tuple[str, str]]:
    """Return what is there, line by line: contrasts, grids, heads, alignment."""
    lines = [("contrasts", listed([f"{name} in {_count(n, 'case')}" for name, n in found.contrasts.items()]) or "none")]
    grids: dict[str, int] = {}
    for look in found.looks:
        shape, spacing = (" x ".join(map(text, each)) for text, each in ((str, look.shape), (_mm, look.spacing_mm)))
        grid = f"{shape} voxels of {spacing} mm"
        grids[grid] = grids.get(grid, 0) + 1
    if grids:
        mixed = "" if len(grids) == 1 else "; mixed"
        lines.append(("grids", listed([f"{_count(n, 'scan')} of {grid}" for grid, n in grids.items()]) + mixed))
        brains = sum(look.is_brain for look in found.looks)
        heads = len(found.looks) - brains
        kinds = [_count(n, noun) for n, noun in ((heads, "whole head"), (brains, "brain")) if n]
        both = " (without skull); mixed, so a network has to learn both" if len(kinds) == 2 else ""
        lines.append(("heads", " and ".join(kinds) + both))
    if found.pairs:
        judged = found.alignments.values()
        good = sum(each.is_pair and not each.mirrored and not each.is_off for each in judged)
        unjudged = len(found.pairs) - len(judged)
        rest = f"; {unjudged} cannot be judged" if unjudged else ""
        lines.append(("aligned", f"{good} of {_count(len(judged), 'pair')} to half a voxel{rest}"))
    return lines


def _mm(length: float) -> str:
    return f"{length:.3g}"


def say_proposal(proposal: Any, dataset: Path, file: Path | None, preset: str) -> None:
    """Print the proposed settings, or write them to a file where one is named; and the command that trains so."""
    settings = proposal.settings
    if file is None:
        if proposal.split is not None:  # numbers would draw from all subjects, those with a fault too
            settings = {table: values for table, values in settings.items() if table != "split"}
        say("settings that fit, for --propose FILE to write:")
        say_lines(toml_of(settings, proposal.reasons))
        if proposal.split is not None:
            say("and a split that names the subjects without a fault, which --propose FILE writes beside it")
        return
    if proposal.split is not None:
        split = Path(realpath(file.with_name(f"{file.stem}-split.json")))
        claim(split, json_with("train", "validation", "test"), "a split that unscanned wrote")
        write_json(split, proposal.split)
        settings = {**settings, "split": {"file": str(split)}}
    write_text(file, toml_of(settings, proposal.reasons))
    say(f"settings   {file}; next: unscanned train {dataset} -o OUT --preset {preset} --settings {file}")
    for reason in proposal.reasons:
        say(f"           {reason}")


def say_cost(what: str, cost: Any) -> None:
    """Print what a run costs."""
    say(f"cost of {what}")
    for line in cost.lines():
        say(f"  {line}")


def say_total(costs: Mapping[str, Any], *, each: int = 1) -> None:
    """Print what all arms cost together, each trained so many times, as a comment of TOML."""
    known = [cost.seconds + cost.synthesis_seconds for cost in costs.values() if cost.seconds is not None]
    if len(known) == len(costs) and len(costs) * each > 1:
        from unscanned.training.cost import duration

        what = "all arms " if each == 1 else f"all {len(costs) * each} trainings"
        say(f"# {what}  {duration(each * sum(known))}, one after the other")


def write_examination(file: Path, found: Any, proposal: Any, cost: Any) -> None:
    """Write what `check` found as JSON."""

    def plain(value: Any) -> dict[str, Any]:
        return {key: str(each) if isinstance(each, Path) else each for key, each in dataclasses.asdict(value).items()}

    write_json(
        file,
        {
            "dataset": str(found.root),
            "source": found.source,
            "target": found.target,
            "usable": [pair.case for pair in found.usable],
            "unusable": found.unusable,
            "findings": [plain(finding) for finding in found.findings],
            "contrasts": found.contrasts,
            "scans": [plain(look) for look in found.looks],
            "alignments": {case: plain(each) for case, each in found.alignments.items()},
            "proposal": None if proposal is None else plain(proposal),
            "cost": None if cost is None else plain(cost),
        },
    )


def raise_unusable(found: Any) -> None:
    """Raise that a case is unusable, if one is.

    Raises:
        BugError: A case could not be checked, for a reason that nobody foresaw.
        ResourceError: A case could not be checked for want of memory or of a worker that can.
        DatasetError: A case is unusable.
    """
    if any(finding.fault == "bug" for finding in found.findings):
        raise _met_bug()
    if short := [finding for finding in found.findings if finding.fault == "resource"]:
        raise ResourceError(
            "some cases could not be looked at",
            where=found.root,
            found=f"{listed([finding.case for finding in short])}: {short[0].message}",
        )
    if found.usable and not found.unusable:
        return
    do = "Mend or remove them; training leaves out what it cannot read, but it does not look at alignment."
    if not found.pairs:
        there = listed(list(found.contrasts)) or "no scans"
        do = f"There are {there}. "
        do += "Try --source {} --target {}.".format(*found.instead) if found.instead else "No case has two of them."
    raise DatasetError(
        "some cases are unusable" if found.usable else "no case is usable",
        where=found.root,
        found=listed(found.unusable) or "no pair",
        do=do,
    )


def say_audit(found: Any, file: Path | None) -> None:
    """Print what `audit` found, and write it to a JSON file where one is given.

    Raises:
        PartialFailure: A scan has no output that is whole.
    """
    if file is not None:
        rows = [dataclasses.asdict(row) for row in found.rows]
        write_json(file, {"folder": str(found.folder), "counts": found.counts, "scans": rows})
    say(f"{_count(len(found.rows), 'scan')}: {listed([f'{n} {status}' for status, n in found.counts.items()])}")
    _complain_of_first([f"{row.scan}: {row.status}: {row.reason}" for row in found.faults])
    if found.faults:
        raise PartialFailure(
            f"{len(found.faults)} of {_count(len(found.rows), 'scan')} have no output that is whole",
            where=found.folder,
            do="Run the cohort again: what is whole is not made again.",
        )


def raise_partial(failures: Mapping[str, Any], count: int | None, *, done: str = "written") -> None:
    """Print the first failures and how many more there are, and raise that some cases failed, or all.

    Args:
        failures: The reason for each case.
        count: All cases; None where at least one did not fail.
        done: What became of the others.

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
        raise DatasetError(f"no case was usable, nothing was {done}")
    of = f" of {count}" if count is not None else ""
    raise PartialFailure(f"{len(failures)}{of} cases failed, the others were {done}")


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
