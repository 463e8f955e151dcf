"""The short form of the fuzzing run: a few hundred mutated files, and the proof that a broken promise would be seen."""

import itertools
import os
import random
import sys
import time

import numpy as np
import pytest
from fuzz import fuzz_volume
from fuzz.fuzz_volume import BrokenPromise, compare, execute, mutate, run_mutations
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import AFFINE, nifti_bytes, some_voxels

from unscanned.files import read_json
from unscanned.volumes import nifti


@settings(max_examples=250, deadline=5000)
@given(seed=st.integers(0, 2**64))
def test_a_mutated_file_is_read_as_it_is_or_refused(tmp_path_factory, seed):
    _, name, file, content = mutate(random.Random(seed))
    assert execute(tmp_path_factory.mktemp("mutated") / name, file, content) in ("read", "refused")


def test_a_run_reports_what_it_did(tmp_path):
    figures = run_mutations(200, 60, 1, tmp_path, tmp_path)
    assert figures["executions"] == 200
    assert figures["promises_broken"] == 0
    assert set(figures["outcomes"]) == {"read", "refused"}


def test_a_volume_that_differs_from_its_file_breaks_a_promise(tmp_path):
    compare(some_voxels(dtype="<f4"), AFFINE, nifti_bytes())
    with pytest.raises(BrokenPromise, match="voxels"):
        compare(some_voxels(dtype="<f4", seed=1), AFFINE, nifti_bytes())
    with pytest.raises(BrokenPromise, match="affine"):
        compare(some_voxels(dtype="<f4"), np.eye(4), nifti_bytes())
    with pytest.raises(BrokenPromise, match="voxels"):
        execute(tmp_path / "scan.nii", nifti_bytes(), nifti_bytes(some_voxels(seed=1)))


def call(arguments, read=None, slowest_s=5.0):
    """Run the command in a process of its own, with a reader of its own if one is given."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            sys.argv[1:] = map(str, arguments)
            fuzz_volume.SLOWEST_S = slowest_s
            fuzz_volume.nifti.read_volume = read or fuzz_volume.nifti.read_volume
            code = fuzz_volume.main()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_fewer_executions_than_asked_for_are_an_error_unless_the_time_was_given(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(fuzz_volume, "SECONDS", 0.0)
    command = ["--executions", 10, "--crashes", tmp_path]
    assert call(command) == 1
    assert "0 of 10 executions were made" in capfd.readouterr().err
    assert call([*command, "--seconds", 0]) == 0


def hang(path):
    while True:
        time.sleep(1)


def hang_outside_python(path):
    sum(itertools.repeat(0, 10**15))


def test_a_reader_that_hangs_breaks_a_promise_and_ends_the_run(tmp_path, capfd):
    once = iter([nifti.read_volume])  # the first file is the undamaged one
    command = ["--executions", 10, "--crashes", tmp_path / "crashes", "--json", tmp_path / "figures.json"]
    assert call(command, lambda path: next(once, hang)(path), slowest_s=0.5) == 1
    assert "no answer within 0.5 s" in capfd.readouterr().err
    figures = read_json(tmp_path / "figures.json")
    assert (figures["executions"], figures["promises_broken"]) == (1, 1)
    assert len(list((tmp_path / "crashes").iterdir())) == 1


def test_a_reader_that_hangs_outside_python_ends_the_process_and_leaves_the_file(tmp_path, capfd):
    once = iter([nifti.read_volume])
    command = ["--executions", 10, "--crashes", tmp_path]
    assert call(command, lambda path: next(once, hang_outside_python)(path), slowest_s=0.5) == 1
    assert "hang_outside_python" in capfd.readouterr().err
    assert len(list(tmp_path.glob("running-*/scan.nii*"))) >= 1
