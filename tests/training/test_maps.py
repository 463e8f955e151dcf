"""A bounded number of memory maps, whatever the number of subjects."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tool import ENVIRONMENT

from unscanned.errors import DatasetError
from unscanned.training import maps
from unscanned.training.maps import MappedVolumes

STUDY = Path(__file__).parents[2] / "studies" / "training_memory.py"
SUBJECTS = 280


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    """Five volumes of which two are open at a time."""
    monkeypatch.setattr(maps, "MOST_MAPS", 2)
    monkeypatch.setattr(maps, "_open", {})
    paths = {str(number): tmp_path / f"{number}.npy" for number in range(5)}
    for name, path in paths.items():
        np.save(path, np.full(3, int(name)))
    return MappedVolumes(paths)


def open_files(folder):
    return {path for entry in Path("/proc/self/fd").iterdir() if (path := os.path.realpath(entry)).startswith(folder)}


def test_each_volume_can_be_asked_for_again_and_few_are_open(volumes, tmp_path):
    for _ in range(2):
        for name in volumes:
            assert volumes[name].tolist() == [int(name)] * 3
            assert isinstance(volumes[name], np.memmap)
            assert not volumes[name].flags.writeable
            assert len(open_files(str(tmp_path))) <= 2
    assert len(volumes) == 5
    assert "4" in volumes
    assert volumes.get("5") is None
    assert pickle.loads(pickle.dumps(volumes))["3"].tolist() == [3, 3, 3]


def test_a_volume_that_is_another_one_when_it_is_mapped_again_is_refused(volumes, tmp_path):
    first = volumes["0"]
    for name in volumes:
        volumes[name]
    np.save(tmp_path / "new.npy", np.zeros(3))
    os.replace(tmp_path / "new.npy", tmp_path / "0.npy")
    with pytest.raises(DatasetError, match=r"0\.npy: a prepared volume has changed since the training began"):
        volumes["0"]
    assert first.tolist() == [0, 0, 0]  # what was open stays what it was
    os.unlink(tmp_path / "1.npy")
    with pytest.raises(DatasetError, match="No such file"):
        volumes["1"]


@pytest.mark.timeout(300)
def test_a_training_on_many_subjects_needs_no_more_open_files_than_one_on_few(tmp_path):
    """280 subjects have 840 volumes; the process may have 700 files open, and not one more."""
    sys.path.insert(0, str(STUDY.parent))
    import training_memory

    training_memory.make_cases(tmp_path, SUBJECTS + 1, (32, 32, 32))
    words = [sys.executable, STUDY, "--one", tmp_path, "--subjects", SUBJECTS, "--shape", 32, 32, 32]
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (700, 700)),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["subjects"] == SUBJECTS
