"""The study of ways back measures what it says."""

import math

import numpy as np
from detail import SCORES, WAYS, score

from unscanned.datasets.pairs import select_pairs
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import read_volume


def test_every_way_is_scored_and_detail_keeps_more_than_plain_interpolation(tiny_dataset):
    pair = select_pairs(tiny_dataset, source="PD", target="T2").pairs[0]
    spacing_mm = 1.6 * max(read_volume(pair.source).spacing_mm)
    scores = score(pair, spacing_mm=spacing_mm)
    assert list(scores) == list(WAYS)
    assert all(list(values) == list(SCORES) for values in scores.values())
    assert scores["detail"]["psnr"] > scores["linear"]["psnr"]
    assert scores["detail"]["hfen"] < scores["linear"]["hfen"]
    part = score(pair, spacing_mm=spacing_mm, slices=8)
    assert all(np.isfinite(list(values.values())).all() for values in part.values())
    assert part["linear"] != scores["linear"]


def test_nothing_is_lost_on_the_grid_of_the_scan(tmp_path):
    dataset = simulate(tmp_path / "heads", subjects=1, shape=(40, 48, 40), spacing_mm=4.0)
    (pair,) = select_pairs(dataset, source="PD", target="T2").pairs
    scores = score(pair, spacing_mm=4.0)
    assert math.isinf(scores["linear"]["psnr"])
    assert scores["cubic"]["psnr"] > 80
    assert scores["detail"]["psnr"] > 80
