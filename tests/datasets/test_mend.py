from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from unscanned.cli import main
from unscanned.datasets.mend import mend
from unscanned.errors import SettingsError, VolumeError
from unscanned.volumes.nifti import STAMP, read_volume, write_volume

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def write(path: Path, array: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), AFFINE), path)
    return path


@pytest.fixture
def four_d(tmp_path: Path) -> Path:
    return write(tmp_path / "echoes.nii.gz", np.random.default_rng(0).random((6, 5, 4, 3)))


def test_one_volume_of_a_4d_file_is_written_on_its_grid(four_d: Path, tmp_path: Path) -> None:
    mend(four_d, tmp_path / "second.nii.gz", volume_index=1)
    volume = read_volume(tmp_path / "second.nii.gz")
    np.testing.assert_array_equal(volume.array, nibabel.load(four_d).get_fdata(dtype=np.float32)[..., 1])
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert json.loads((tmp_path / "second.json").read_text())["VolumeIndex"] == 1


def test_replaced_voxels_are_zero_and_counted(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((6, 5, 4)) + 1
    array[0, 0, 0], array[1, 0, 0] = np.nan, np.inf
    scan = write(tmp_path / "holes.nii.gz", array)
    with pytest.raises(VolumeError, match="--replace-nonfinite"):
        mend(scan, tmp_path / "out.nii.gz")
    mend(scan, tmp_path / "out.nii.gz", replace_nonfinite=True)
    assert (read_volume(tmp_path / "out.nii.gz").array == 0).sum() == 2
    assert "2" in " ".join(json.loads((tmp_path / "out.json").read_text())["Warnings"])


def test_an_existing_output_is_never_replaced(four_d: Path) -> None:
    before = four_d.read_bytes()
    with pytest.raises(SettingsError):
        mend(four_d, four_d, volume_index=0)
    assert four_d.read_bytes() == before


def test_the_refusal_names_the_command_that_mends(four_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(VolumeError, match=r"unscanned mend .* --volume-index 0 to 2"):
        read_volume(four_d)
    out = tmp_path / "first.nii.gz"
    assert main(["mend", str(four_d), "-o", str(out), "--volume-index", "0"]) == 0
    assert str(out) in capsys.readouterr().out
    assert main(["mend", str(four_d), "-o", str(tmp_path / "x.nii.gz"), "--volume-index", "3"]) == 3


def test_a_mended_synthetic_volume_still_says_that_it_is_one(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    write_volume(tmp_path / "made.nii.gz", array, AFFINE, description=STAMP)
    mend(tmp_path / "made.nii.gz", tmp_path / "out.nii.gz")
    assert read_volume(tmp_path / "out.nii.gz").synthetic
    assert json.loads((tmp_path / "out.json").read_text())["Synthetic"] is True
