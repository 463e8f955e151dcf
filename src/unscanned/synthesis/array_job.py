"""A cohort as an array job of a batch system: one script, one list of scans, and tasks that share it by claims.

A task may be lost, repeated or run twice at once: volumes are written whole, a lost claim is taken up again, and
`audit` says what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from os.path import abspath
from pathlib import Path
from typing import Any

from unscanned.cluster.claims import Claims
from unscanned.cluster.summary import LOST_AFTER_S, SUMMARY, Row, Summary, read_summary
from unscanned.errors import (
    BusyError,
    DatasetError,
    Interrupted,
    ResourceError,
    SettingsError,
    UnscannedError,
    WorkerLost,
)
from unscanned.files import lock, read_json, read_text, write_json, write_text
from unscanned.formats.cohort import CohortRecord
from unscanned.machine.crash import of_one
from unscanned.machine.provenance import NAME, version
from unscanned.machine.threads import set_process_threads
from unscanned.outputs import begins_with, claim, json_with
from unscanned.progress import Progress, within
from unscanned.schema import read
from unscanned.settings import Synthesis
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import StoredModel, stored
from unscanned.synthesis.synthesize import Synthesized, making_on_worker, plan_cohort

__all__ = ["emit_slurm", "read_list", "take_scans"]

_SCANS_A_TASK = 50
_MOST_TASKS = 100

_SCRIPT = """#!/bin/bash
# Written by {tool}: makes {count} synthetic volumes in {out}.
# Submit it:       sbatch {script}
# More tasks:      sbatch --array=0-199 {script}   (any number; they share the list)
# What is missing: unscanned audit {out}
# Submitted again, it goes on with what is missing. Tasks may be lost, killed or repeated.
#SBATCH --job-name=unscanned
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task={threads}
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={logs}/%A_%a.txt
exec {python} -m unscanned take {folder} --task "${{SLURM_ARRAY_TASK_ID:-0}}" --tasks "${{SLURM_ARRAY_TASK_COUNT:-1}}"
"""


def emit_slurm(
    model: Model,
    scans: Sequence[tuple[Path, str | None]],
    out: str | Path,
    folder: str | Path,
    *,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    **changes: Any,
) -> Path:
    """Write the script of an array job that synthesizes scans, with its list; nothing is submitted.

    Written again, it begins anew: tasks skip what is there already from the same input, model and settings.

    Args:
        model: Read from a folder that all nodes see.
        scans: As for `synthesize`.
        out: Folder of the outputs; gets summary.csv, in which every scan waits.
        folder: Gets array.sh, scans.jsonl, cohort.json and logs/.
        force: As for `synthesize`.
        device: That each task takes.
        threads: CPU threads of each task; None asks for one.
        **changes: As for `synthesize`.

    Returns:
        The script.

    Raises:
        SettingsError: As for `synthesize`, a file of another kind has the name of one of these, or a path that no
            script can have.
        BusyError: Another run writes into `out`.
    """
    out, folder = Path(abspath(out)), Path(abspath(folder))
    script = folder / "array.sh"
    if any("\n" in str(path) for path in (out, folder)):
        raise SettingsError("a path with a line break cannot stand in a script", where=out)
    how = model.how(**changes)
    record = CohortRecord(
        unscanned=version(),
        out=str(out),
        model=dataclasses.asdict(stored(model)),
        synthesis=how.model_dump(),
        device=device,
        threads=threads,
        force=force,
    )
    claim(script, begins_with("#!/bin/bash\n# Written by unscanned"), "a script that unscanned wrote")
    claim(folder / "cohort.json", json_with("model", "synthesis", "out"), "a cohort that unscanned wrote")
    claim(folder / "scans.jsonl", begins_with('{"output"'), "a list that unscanned wrote")
    with lock(out):
        rows = plan_cohort(model, scans, out)
        with Summary.of(out, rows):
            pass
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_json(folder / "cohort.json", record.to_json())
    lines = [json.dumps({"output": row.output, "scan": row.scan}) + "\n" for row in rows]
    write_text(folder / "scans.jsonl", "".join(lines))
    tasks = min(_MOST_TASKS, -(-len(rows) // _SCANS_A_TASK))
    quote = shlex.quote
    text = _SCRIPT.format(
        tool=f"{NAME} {version()}",
        count=len(rows),
        out=quote(str(out)),
        script=quote(str(script)),
        last=max(0, tasks - 1),
        threads=threads or 1,
        logs=str(folder / "logs").replace("%", "%%"),
        python=quote(sys.executable),
        folder=quote(str(folder)),
    )
    write_text(script, text)
    script.chmod(0o755)
    return script


def take_scans(
    folder: str | Path,
    *,
    task: int = 0,
    tasks: int = 1,
    lost_after_s: float = LOST_AFTER_S,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Synthesized:
    """Take scans of a list that `emit_slurm` wrote, one after the other, until none is left to take.

    Args:
        folder: That `emit_slurm` wrote into.
        task: Number of this task, from 0; it says where in the list to begin.
        tasks: How many tasks share the list.
        lost_after_s: Age from which on a claim without a sign of life is this task's to take.
        progress: Called with (done, total, label), in thousandths of a scan, of the task's share of the list.
        should_stop: Asked now and then; the scan in hand is given back.

    Returns:
        What became of the scans that this task took.

    Raises:
        SettingsError: No such number of a task.
        DatasetError: The list cannot be read.
        CheckpointError: As for `load_model`.
        ResourceError: The disk is full, memory is short, another version of the package wrote the list, or the device
            is not there.
        Interrupted: `should_stop` said so.
    """
    if tasks < 1 or task < 0:
        raise SettingsError(
            "no such task", where="task", found=f"{task} of {tasks}", expected="0 or more, of 1 or more"
        )
    record, rows = read_list(Path(folder))
    if record.unscanned != version():
        raise ResourceError(
            "another version of unscanned wrote the list",
            where=folder,
            found=version(),
            expected=record.unscanned,
            do="Write it again with --emit slurm.",
        )
    out = Path(record.out)
    how = read(Synthesis, record.synthesis, where=str(folder), error=DatasetError)
    set_process_threads(record.threads)
    making = making_on_worker(StoredModel(**record.model), how, False, False, record.force, record.device)
    owner = _owner(task)
    claims = Claims(out, owner, lost_after_s=lost_after_s)
    result, share = Synthesized(), -(-len(rows) // tasks)
    for number, (row, is_free) in enumerate(claims.each(rows, share * task % max(1, len(rows)), share)):
        began, path = time.monotonic(), out / row.output
        error: UnscannedError | None = None
        report = within(
            progress, min(number, share - 1), share, partial("{}, {}".format, Path(row.scan).name), unit=1000
        )
        try:
            if not is_free:
                raise WorkerLost("given up: each task that took it was lost", where=row.scan)
            made = making((Path(row.scan), path), partial(_alive, claims, row, report, should_stop))
            (result.written if made else result.skipped).append(path)
            status = "written" if made else "skipped"
        except (Interrupted, KeyboardInterrupt, ResourceError):
            claims.give_back(row)
            raise
        except Exception as raised:
            error, status = of_one(raised, where=row.scan), "failed"
            result.failures[row.scan] = error
        seconds = round(time.monotonic() - began, 3)
        claims.finish(replace(row, status=status, reason=str(error or ""), seconds=seconds, worker=owner))
    # The last task to end leaves a summary that says all; where others write it, or cannot lock it, audit still knows.
    with suppress(BusyError, ResourceError), lock(out):
        if not (out / SUMMARY).exists():  # removed, perhaps with the outputs
            Summary(out / SUMMARY, {row.output: row for row in rows}, {}).save()
        Summary(out / SUMMARY, read_summary(out), {}).save()
    return result


def _alive(
    claims: Claims,
    row: Row,
    progress: Progress | None,
    should_stop: Callable[[], bool],
    done: int,
    total: int,
    label: str,
) -> None:
    if should_stop():
        raise Interrupted("interrupted", where=row.scan, do="Submit the script again to go on.")
    claims.renew(row)
    if progress is not None:
        progress(done, total, label)


def _owner(task: int) -> str:
    """Return the name of this task; one that Slurm has put back into the queue keeps it."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    return f"job-{job}-{task}" if job else f"{socket.gethostname()}-{os.getpid()}"


def read_list(folder: Path) -> tuple[CohortRecord, list[Row]]:
    """Return what the tasks of an array job make, and a row for each scan.

    Raises:
        DatasetError: There is no list, or it is damaged.
    """
    try:
        record = CohortRecord.load(read_json(folder / "cohort.json"), where=folder, error=DatasetError)
        rows = [Row(**json.loads(line)) for line in read_text(folder / "scans.jsonl").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(
            "no list of scans",
            where=folder,
            found=error,
            expected="a folder that unscanned synthesize --emit slurm wrote",
        ) from error
    return record, rows
