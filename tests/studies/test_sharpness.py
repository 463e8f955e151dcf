"""Sharpness and agreement say what they claim of images whose blur and noise are known."""

import sys

import numpy as np
import pytest
import sharpness
from scipy import ndimage

from unscanned.evaluation.evaluate import evaluate
from unscanned.volumes.nifti import read_volume, write_volume


@pytest.fixture(scope="module")
def evaluation(tiny_dataset, tmp_path_factory):
    """An evaluation of targets that are as acquired but for a gain, blurred, and with detail of another place."""
    folder = tmp_path_factory.mktemp("sharpness")
    arms = {
        "same": lambda image: 0.7 * image,
        "blurred": lambda image: ndimage.gaussian_filter(image, 1.0),
        "noisy": lambda image: image + np.random.default_rng(0).normal(0, 0.1 * image.max(), image.shape),
    }
    for path in tiny_dataset.glob("sub-*/anat/*_T2w.nii.gz"):
        volume = read_volume(path)
        for arm, change in arms.items():
            write_volume(folder / arm / path.name, change(volume.array).astype(np.float32), volume.affine)
    evaluate(
        tiny_dataset, {arm: folder / arm for arm in arms}, folder / "out", source="PD", target="T2", leave_one_out=True
    )
    return folder / "out"


def test_a_copy_is_as_sharp_a_blurred_one_less_and_noise_more_in_other_places(evaluation):
    record = sharpness.read_evaluation(evaluation)
    sharp, agreement = sharpness.measure(record, ["same", "blurred", "noisy"])
    assert [*sharp["same"].values()] == pytest.approx([1.0] * 4, abs=1e-4)
    assert [*agreement["same"].values()] == pytest.approx([1.0] * 4, abs=1e-4)
    assert all(0.1 < value < 0.6 for value in sharp["blurred"].values())
    assert all(value > 1.2 for value in sharp["noisy"].values())
    assert all(0.05 < value < 0.95 for value in agreement["noisy"].values())
    plain, _ = sharpness.measure(record, ["blurred", "noisy"], with_gain=False)
    assert all(plain["noisy"][subject] > sharp["noisy"][subject] for subject in plain["noisy"])  # a gain below 1


def test_the_table_compares_with_its_first_arm_and_refuses_one_that_is_not_there(evaluation, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sharpness.py", str(evaluation), "--arms", "same", "blurred"])
    sharpness.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| same | 1.000 (0.000) |  | 1.000 (0.000) |  |"
    assert "| -0." in rows[3]
    monkeypatch.setattr(sys, "argv", ["sharpness.py", str(evaluation), "--arms", "tissues"])
    with pytest.raises(SystemExit):
        sharpness.main()
    assert "no such arm: found tissues, expected some of same, blurred, noisy, source" in capsys.readouterr().err
