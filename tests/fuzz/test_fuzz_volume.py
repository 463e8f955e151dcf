"""The short form of the fuzzing run: a few hundred mutated files, and the proof that a broken promise would be seen."""

import random

import numpy as np
import pytest
from fuzz.fuzz_volume import BrokenPromise, compare, execute, mutate, run_mutations
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import AFFINE, nifti_bytes, some_voxels


@settings(max_examples=250, deadline=5000)
@given(seed=st.integers(0, 2**64))
def test_a_mutated_file_is_read_as_it_is_or_refused(tmp_path_factory, seed):
    _, name, file, content = mutate(random.Random(seed))
    assert execute(tmp_path_factory.mktemp("mutated") / name, file, content) in ("read", "refused")


def test_a_run_reports_what_it_did(tmp_path):
    figures = run_mutations(200, 60, 1, tmp_path, tmp_path / "crashes")
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
