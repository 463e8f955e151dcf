"""The study of fluid finds what was put into the middle of it."""

import sys

import fluid
import numpy as np

from unscanned.evaluation.evaluate import evaluate
from unscanned.volumes.nifti import write_volume


def test_what_an_arm_makes_of_the_middle_of_the_fluid_is_told_beside_what_was_acquired(tmp_path, monkeypatch, capsys):
    rng, affine = np.random.default_rng(0), np.diag([2.0, 2.0, 2.0, 1.0])
    distance = np.linalg.norm(np.indices((40, 40, 40)) - 20, axis=0)
    head, ball, middle = distance < 17, distance < 6, distance < 3
    tissue = np.where(head, 100 + 30 * (distance > 12) + rng.normal(0, 3, head.shape), 0)
    images = {
        "data/sub-{}/anat/sub-{}_T1w.nii.gz": np.where(ball, 0.1 * tissue, tissue),
        "data/sub-{}/anat/sub-{}_T2w.nii.gz": np.where(ball, 4 * tissue, tissue),
        "right/sub-{}_T2w.nii.gz": 0.5 * np.where(ball, 4 * tissue, tissue),
        "dark/sub-{}_T2w.nii.gz": np.where(middle, tissue, np.where(ball, 4 * tissue, tissue)),
    }
    for subject in ("1", "2"):
        for name, image in images.items():
            path = tmp_path / name.format(subject, subject)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, image.astype(np.float32), affine)
    arms = {arm: tmp_path / arm for arm in ("right", "dark")}
    evaluate(tmp_path / "data", arms, tmp_path / "out", source="T1", target="T2", leave_one_out=True)
    monkeypatch.setattr(sys, "argv", ["fluid.py", str(tmp_path / "out"), "--deeper-mm", "7"])
    fluid.main()
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "| scan | voxels | T1 | right | dark | T2, acquired |"
    for row in rows:
        voxels, source, right, dark, acquired = (float(cell) for cell in row.strip("| ").split(" | ")[1:])
        assert 50 < voxels < middle.sum()
        assert source < 0.1
        assert 2.8 < acquired < 4.1
        assert abs(right - acquired) < 0.02
        assert dark < 1
