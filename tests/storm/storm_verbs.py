"""Kill the other verbs with SIGKILL at random moments, look at every file, and run them again to the end.

The verbs are reproduce, prepare, evaluate, report, dicom and simulate, in turn, as the command line calls them. What
stands under a final name after a kill must be what an uninterrupted call writes there. Half of the kills are followed
by another one, half by a call that is left to come to its end. Its whole output must then be that of an uninterrupted
call, byte for byte but for times.

    PYTHONPATH=src:tests python -m storm.storm_verbs --kills 200 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from harness.world import make_world
from storm.life import live

from unscanned.cli import main as call
from unscanned.files import read_json, sha256

Facts = dict[str, str]


@dataclass
class Outcome:
    """What a storm left behind.

    Attributes:
        kills: Lives that ended by SIGKILL, by verb.
        reruns: Calls after a kill that were left to come to their end.
        files: Files under a final name looked at after the kills.
        partial: Those that are not what an uninterrupted call writes there.
        wrong: Reruns whose output is not that of an uninterrupted call.
        left: Unfinished files or folders of killed calls that are still there after a rerun.
    """

    kills: Counter[str] = field(default_factory=Counter)
    reruns: int = 0
    files: int = 0
    partial: int = 0
    wrong: int = 0
    left: int = 0
    reasons: list[str] = field(default_factory=list)


def words_of(world: Path, out: Path) -> dict[str, list[object]]:
    """Return the words of each verb's call; all write to `out`."""
    derived = world / "derived" / "sub-scan" / "anat" / "sub-scan_desc-synthetic_T2w.nii.gz"
    tiny = ["--settings", world / "settings.toml"]
    return {
        "reproduce": [world / "dataset", "-o", out, "--arms", "demo", *tiny],
        "prepare": [world / "dataset", "-o", out, *tiny],
        "evaluate": [world / "dataset", world / "synthetic", "-o", out],
        "report": [world / "evaluation", "-o", out, "--runs", f"run={world / 'run'}"],
        "dicom": [derived, world / "dicom", "-o", out, "--scan", world / "scan.nii.gz"],
        "simulate": ["-o", out, "--subjects", 3, "--shape", 12, 12, 12, "--spacing-mm", 16],
    }


def work(words: list[object], *, may_be_there: bool = False) -> None:
    """Call the command line, silently."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = call([str(word) for word in words])
    if code not in ((0, 3) if may_be_there else (0,)):
        raise RuntimeError(f"exit code {code} of {words[0]}: {said.getvalue()[-500:]}")


def facts(out: Path) -> Facts:
    """Return a hash of each file under a final name, times left out; "" is the path of `out` itself if it is a file."""
    found = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    return {
        name: _hash(path)
        for path in found
        if ".partial-" not in (name := "" if path == out else str(path.relative_to(out)))
        and path.name != ".lock"
        and "tensorboard/" not in name
    }


def _hash(path: Path) -> str:
    if path.suffix in (".json", ".jsonl", ".html", ".csv"):
        text = path.read_text(errors="surrogateescape")
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)", "TIME", text)
        text = re.sub(r"((?:seconds|waiting_s|waited)\w*(?:&#34;|\")?: )[\d.e+-]+", r"\1TIME", text)
        text = re.sub(r'(seal_sha256": )"[0-9a-f]+"', r"\1SEAL", text)  # it covers the times
        return text
    return sha256(path)


def storm(root: Path, kills: int, seed: int) -> Outcome:
    """Kill each verb in turn until there were so many kills in all.

    Args:
        root: Empty folder.
        kills: Number of kills.
        seed: Of their moments, which are uniform up to a tenth more than what an undisturbed life takes.
    """
    torch.set_num_threads(1)
    world, outcome, chance = make_world(root / "world"), Outcome(), random.Random(seed)
    verbs: dict[str, Callable[[int], None]] = {}
    for verb in words_of(world, root):
        folder = root / verb
        folder.mkdir()
        words = [verb, *words_of(world, folder / "out")[verb]]
        work(words)  # here first, so that no life spends its time on imports
        _clear(folder)
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        live(partial(work, words), None)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = now.ru_utime + now.ru_stime - began.ru_utime - began.ru_stime
        truth = facts(folder / "out")
        _clear(folder)
        verbs[verb] = partial(_kill, verb, words, folder / "out", truth, 1.1 * seconds, outcome, chance)
    turn = 0
    while outcome.kills.total() < kills:
        verbs[list(verbs)[turn % len(verbs)]](kills)
        turn += 1
        if turn % 6 == 0:
            wrong = outcome.partial + outcome.wrong
            print(f"{outcome.kills.total()} kills, {wrong} wrong", file=sys.stderr, flush=True)
    return outcome


def _kill(
    verb: str,
    words: list[object],
    out: Path,
    truth: Facts,
    latest: float,
    outcome: Outcome,
    chance: random.Random,
    kills: int,
) -> None:
    """Kill a verb once or more, let it come to its end, and look at all files after each."""
    was_killed = False
    while outcome.kills.total() < kills:
        if live(partial(work, words, may_be_there=True), chance.uniform(0.01, latest), group=chance.random() < 0.5):
            break
        was_killed = True
        outcome.kills[verb] += 1
        _inspect(verb, out, truth, outcome)
        if chance.random() < 0.5:
            break
    if was_killed:
        # Where the kill came after the last file had its name, all is there, and some verbs say so with exit code 3.
        before = facts(out)
        outcome.reruns += 1
        try:
            live(partial(work, words, may_be_there=before == truth), None)
        except RuntimeError as error:
            outcome.wrong += 1
            outcome.reasons.append(f"{verb}: {error}, where {_differing(before, truth)} was not as in the end")
        else:
            if (found := facts(out)) != truth:
                outcome.wrong += 1
                outcome.reasons.append(f"{verb}: other than uninterrupted: {_differing(found, truth)}")
        outcome.left += len(list(out.parent.rglob("*.partial-*")))
    _clear(out.parent)


def _inspect(verb: str, out: Path, truth: Facts, outcome: Outcome) -> None:
    for name, content in facts(out).items():
        outcome.files += 1
        path = out / name if name else out
        if path.parent.name in ("checkpoints", "best"):
            # A run keeps the last of them only, so they are held against what they say of themselves.
            is_whole = path.suffix == ".json" or _is_checkpoint(path)
        elif path.name == "log.jsonl":
            is_whole = truth[name].startswith(content)
        else:
            is_whole = truth.get(name) == content
        if not is_whole:
            outcome.partial += 1
            outcome.reasons.append(f"{verb}: not whole after a kill: {name}")


def _is_checkpoint(path: Path) -> bool:
    manifest = path.with_suffix(".json")
    return not manifest.exists() or read_json(manifest)["sha256"] == sha256(path)


def _differing(found: Mapping[str, str], truth: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*found, *truth} if found.get(name) != truth.get(name))


def _clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def main() -> None:
    """Run the storm and print what it left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="storm-") as root:
        outcome = storm(Path(root), options.kills, options.seed)
    print(json.dumps({**vars(outcome), "minutes": round((time.monotonic() - began) / 60, 1)}, indent=2))
    if outcome.partial or outcome.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
