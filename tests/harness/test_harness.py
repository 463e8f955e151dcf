"""The short form of the harness: calls of the command line, and the proof that each broken promise would be seen."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from harness import run
from harness.calls import Call
from harness.judge import snapshot
from harness.run import Tally, from_json, search, to_json

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices, small disks and other users need root")
CALL = Call(("check", "@/in/dataset", "--measure-s", "0"))


@pytest.fixture(scope="module")
def prepared():
    with run.prepared() as look:
        yield look


@pytest.fixture
def look(prepared):
    prepared.renew()  # a new worker sees what a test has changed
    yield prepared
    prepared.renew()


@needs_root
@pytest.mark.slow
def test_calls_drawn_at_random_keep_every_promise(look):
    tally = Tally()
    search(look, 60, 0, tally.take, is_process=False)
    assert tally.number >= 50
    assert not tally.findings


@needs_root
def test_calls_as_processes_of_their_own_keep_every_promise(look):
    tally = Tally()
    search(look, 2, 0, tally.take, is_process=True)
    assert not tally.findings


def misbehaving(work):
    """Return a command line that does something else than it should."""

    def main(words):
        return work(words) or 0

    return main


def crash(words):
    raise RuntimeError("not caught")


def bug(words):
    print("unscanned: this is a bug; what happened is in nowhere. Please report it with that file.")
    return 1


def spin(words):
    while True:
        pass


def hoard(words):
    hoard.kept = bytearray(2 * 2**30)


def steer(words):
    print("\x1b[31mred")


def edit(words):
    Path(words[1], "participants.tsv").write_text("x")


def litter(words):
    Path(words[1]).with_name("new").touch()


def leave(words):
    Path(words[1], "../../out/.partial-1-abc").resolve().touch()


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (crash, "traceback"),
        (bug, "bug"),
        (lambda words: 1, "code"),
        (lambda words: 3, "silence"),
        (steer, "escape"),
        (edit, "files"),
        (litter, "files"),
        (leave, "partial"),
        (hoard, "memory"),
        (spin, "time"),
    ],
)
def test_a_call_that_breaks_a_promise_is_found(look, monkeypatch, work, kind):
    monkeypatch.setattr("unscanned.cli.main", misbehaving(work))
    if work is spin:  # the others may take longer on a busy machine
        monkeypatch.setattr("harness.judge.CPU_S", 1)
    assert kind in {broken.split()[0] for broken in look(CALL).broken}


def test_a_call_that_waits_without_end_is_found(look, monkeypatch):
    monkeypatch.setattr("unscanned.cli.main", misbehaving(lambda words: os.read(os.pipe()[0], 1)))
    monkeypatch.setattr("harness.judge.WALL_S", 1)
    assert "time" in {broken.split()[0] for broken in look(CALL).broken}


def test_a_right_call_keeps_its_promises_and_leaves_nothing_behind(look):
    verdict = look(CALL)
    assert (verdict.code, verdict.broken) == (0, ())
    assert snapshot(look.base) == {}


def test_a_finding_names_the_call_that_repeats_it():
    call = replace(CALL, faults=(("dataset", 1, "fifo", 2),), environment=(("HOME", None),), user="nobody")
    assert from_json(to_json(call)) == call
