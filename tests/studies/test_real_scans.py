import csv
import sys

import numpy as np
import pytest
import real_scans

from unscanned.datasets.pairs import select_pairs
from unscanned.evaluation.baselines import fit_regression
from unscanned.evaluation.cases import training_pair
from unscanned.evaluation.metrics import psnr
from unscanned.volumes.nifti import read_volume, write_volume


def test_each_scan_stands_beside_a_regression_that_has_not_seen_its_patient(
    tiny_dataset, tiny_run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    words = [str(out), str(tiny_dataset), "--models", f"tiny={tiny_run / 'model'}", "--source", "PD", "--target", "T2"]
    monkeypatch.setattr(sys, "argv", ["real_scans.py", *words])
    real_scans.main()
    with open(out / "scores.csv", encoding="utf-8") as file:
        scores = {(row["case"], row["arm"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    pairs = [pair for pair in select_pairs(tiny_dataset, source="PD", target="T2").pairs if pair.target is not None]
    assert {arm for _, arm, _ in scores} == {"source", "regression", "own-regression", "tiny"}
    for pair in pairs:
        source, target, head = training_pair(pair)
        fitted = fit_regression(training_pair(other) for other in pairs if other.subject != pair.subject)
        expected = psnr(target, fitted(source, head), head, data_range=1.0)
        assert scores[pair.case, "regression", "psnr"] == pytest.approx(expected, rel=1e-4)
        assert scores[pair.case, "own-regression", "psnr"] >= scores[pair.case, "regression", "psnr"]
        assert (out / f"{pair.case}.png").read_bytes().startswith(b"\x89PNG")
    assert "| tiny | psnr |" in capsys.readouterr().out


def test_a_scan_in_thick_slices_holds_their_means_at_their_places(tmp_path):
    affine = np.array([[0, 0, 2.0, -20], [-1.5, 0, 0, 30], [0, -1.0, 0, 50], [0, 0, 0, 1]])  # from head to foot along j
    array = np.random.default_rng(0).random((6, 11, 5), np.float32)
    write_volume(tmp_path / "fine_T1w.nii.gz", array, affine)
    path = real_scans.slice_scan(tmp_path / "fine_T1w.nii.gz", 3.0, tmp_path / "thick")
    thick = read_volume(path)
    assert thick.shape == (6, 3, 5)
    assert thick.spacing_mm == pytest.approx((1.5, 3.0, 2.0))
    assert np.allclose(thick.array[:, 1], array[:, 3:6].mean(axis=1), atol=1e-6)
    assert thick.affine @ (0, 1, 0, 1) == pytest.approx(affine @ (0, 4, 0, 1))
    assert real_scans.slice_scan(path, 3.0, tmp_path / "again") == path


def test_a_tilted_scan_keeps_its_anatomy_where_it_was_in_the_world(tmp_path):
    affine = np.diag([-2.0, 1.5, 1.0, 1.0])
    affine[:3, 3] = (20, -30, 50)
    at = np.stack(np.meshgrid(*map(np.arange, (21, 31, 41)), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    blob = np.array([6.0, -14.0, 77.0])
    array = np.exp(-((at - blob) ** 2).sum(-1) / 32).astype(np.float32)
    write_volume(tmp_path / "sub-1_T1w.nii.gz", array, affine)
    tilted = read_volume(real_scans.tilt_scan(tmp_path / "sub-1_T1w.nii.gz", 20.0, tmp_path / "tilted"))
    assert tilted.shape == array.shape
    assert tilted.spacing_mm == pytest.approx((2.0, 1.5, 1.0))
    along = tilted.affine[:3, 2] / np.linalg.norm(tilted.affine[:3, 2])
    assert np.rad2deg(np.arccos(along[2])) == pytest.approx(20, abs=1e-3)
    places = np.argwhere(np.ones(array.shape)) @ tilted.affine[:3, :3].T + tilted.affine[:3, 3]
    assert np.average(places, axis=0, weights=tilted.array.ravel()) == pytest.approx(blob, abs=0.1)


def test_finer_scans_are_scored_in_thick_slices_when_asked(tiny_dataset, tiny_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = [str(out), str(tiny_dataset), "--models", f"tiny={tiny_run / 'model'}", "--source", "PD", "--target", "T2"]
    spacing = read_volume(next(tiny_dataset.rglob("*_PDw.nii.gz"))).spacing_mm[2]
    monkeypatch.setattr(sys, "argv", ["real_scans.py", *words, "--slices-mm", str(2 * spacing)])
    real_scans.main()
    made = next((out / "tiny").rglob("*_desc-synthetic_T2w.nii.gz"))
    assert read_volume(made).spacing_mm[2] == pytest.approx(2 * spacing)
