"""The settings that `check` proposes hold the heads, fit the network, and train without another option."""

import json
import shutil

import numpy as np
import pytest

from unscanned.datasets.check import examine
from unscanned.datasets.proposal import propose
from unscanned.errors import Interrupted
from unscanned.settings import resolve, toml_of
from unscanned.simulation.simulate import simulate
from unscanned.training.run import train
from unscanned.volumes.nifti import read_volume, write_volume


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Four simulated subjects, PD and T2, 3 mm."""
    folder = tmp_path_factory.mktemp("heads") / "dataset"
    return simulate(folder, subjects=4, seed=7, shape=(64, 76, 64), spacing_mm=3.0)


def trains(dataset, folder, proposal):
    """Train with a proposal and nothing else until a few steps are taken; return how many cases were prepared."""
    folder.mkdir()
    file = folder / "mine.toml"
    file.write_text(toml_of(proposal.settings, proposal.reasons), encoding="utf-8")
    labels = []
    with pytest.raises(Interrupted):
        train(
            dataset,
            folder / "run",
            preset="demo",
            file=file,
            progress=lambda done, total, label: labels.append(label),
            should_stop=lambda: any("epoch" in label for label in labels),
        )
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert np.isfinite([row["g_loss"] for row in log if row["event"] == "step"]).all()
    return len(list((folder / "run" / "prepared").iterdir()))


def test_simulated_heads_get_a_grid_that_holds_them_and_train(heads, tmp_path):
    found = examine(heads, source="PD", target="T2")
    proposal = propose(found)
    assert proposal.settings["data"] == {"source": "PD", "target": "T2"}
    assert proposal.settings["split"] == {"train": 2, "validation": 1, "test": 1}
    assert set(proposal.settings["prepare"]) == {"shape"}
    shape = np.array(proposal.settings["prepare"]["shape"])
    assert (shape % 32 == 0).all()
    sizes = np.array([np.divide(look.head_mm, look.spacing_mm) for look in found.looks])
    assert (shape + 4 >= sizes.max(0)).all()
    assert (shape - 32 < sizes.max(0)).all()
    assert trains(heads, tmp_path / "out", proposal) == 3


def test_differing_spacings_are_resampled_and_subjects_with_a_fault_left_out(heads, tmp_path):
    dataset = shutil.copytree(heads, tmp_path / "dataset")
    for contrast in ("PDw", "T2w"):
        path = dataset / "sub-001" / "anat" / f"sub-001_{contrast}.nii.gz"
        volume = read_volume(path)
        path.unlink()
        write_volume(path, volume.array[:, :, ::2], volume.affine @ np.diag([1, 1, 2, 1]))
    mirrored = dataset / "sub-003" / "anat" / "sub-003_T2w.nii.gz"
    volume = read_volume(mirrored)
    mirrored.unlink()
    write_volume(mirrored, volume.array[::-1], volume.affine)
    proposal = propose(examine(dataset, source="PD", target="T2"))
    assert proposal.settings["prepare"]["spacing_mm"] == 3.0
    assert "averages" not in proposal.settings["prepare"]
    assert sorted(subject for part in proposal.split.values() for subject in part) == ["001", "002", "004"]
    assert [len(part) for part in proposal.split.values()] == [1, 1, 1]
    assert "003" in " ".join(proposal.reasons)


def test_voxels_of_half_the_spacing_are_averaged(heads, tmp_path):
    dataset = shutil.copytree(heads, tmp_path / "dataset")
    for contrast in ("PDw", "T2w"):
        path = dataset / "sub-001" / "anat" / f"sub-001_{contrast}.nii.gz"
        volume = read_volume(path)
        path.unlink()
        write_volume(path, volume.array.repeat(2, axis=0), volume.affine @ np.diag([0.5, 1, 1, 1]))
    proposal = propose(examine(dataset, source="PD", target="T2"))
    assert proposal.settings["prepare"]["spacing_mm"] == 3.0
    assert proposal.settings["prepare"]["averages"] is True
    assert any("voxels down to 1.5 mm" in reason for reason in proposal.reasons)
    assert trains(dataset, tmp_path / "out", proposal) == 3


def test_targets_on_another_grid_that_are_aligned_in_space_are_resampled(heads, tmp_path):
    dataset = shutil.copytree(heads, tmp_path / "dataset")
    for path in sorted(dataset.rglob("*_T2w.nii.gz")):
        volume = read_volume(path)
        path.unlink()
        write_volume(path, volume.array[2:-2], volume.affine @ np.array([[1, 0, 0, 2], *np.eye(4)[1:]]))
    found = examine(dataset, source="PD", target="T2")
    assert {(finding.severity, finding.fault) for finding in found.findings} == {("error", "grid")}
    proposal = propose(found)
    assert proposal.settings["prepare"]["resample"] is True
    assert trains(dataset, tmp_path / "out", proposal) == 3


def test_a_single_subject_is_trained_on_and_none_without_a_pair_is_proposed(heads, tmp_path):
    shutil.copytree(heads / "sub-001", tmp_path / "dataset" / "sub-001")
    proposal = propose(examine(tmp_path / "dataset", source="PD", target="T2"))
    assert proposal.settings["split"] == {"train": 1, "validation": 0, "test": 0}
    assert propose(examine(tmp_path / "dataset", source="T1w", target="T2")) is None


@pytest.mark.slow
def test_real_scans_of_mixed_spacing_train_with_what_is_proposed(shared_data, tmp_path):
    dataset = shared_data / "ms-t1-t2-flair"
    found = examine(dataset, source="T1w", target="T2w")
    proposal = propose(found)
    assert proposal.settings["prepare"]["spacing_mm"] == pytest.approx(0.9)
    assert proposal.settings["split"] == {"train": 3, "validation": 1, "test": 1}
    assert {look.case for look in found.looks if look.is_brain} == {"sub-ms07", "sub-ms19"}
    resolve("resgan", overrides=proposal.settings)
    assert trains(dataset, tmp_path / "out", proposal) >= 4
