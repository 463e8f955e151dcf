from pathlib import Path

import numpy as np
import pytest
from cohort import head_phantom

from unscanned.errors import DatasetError
from unscanned.evaluation.metrics import METRICS, mae, psnr
from unscanned.evaluation.scores import REGIONS, case_constants, score
from unscanned.formats.evaluation import Constants
from unscanned.volumes.intensity import head_mask


def volumes():
    _, target = head_phantom(0)
    noise = np.random.default_rng(1).standard_normal(target.shape).astype(np.float32)
    return target / 1000, target / 1000 + 0.05 * noise, head_mask(target)


def test_every_region_has_every_metric_and_every_metric_is_explained():
    scores = score(*volumes(), mean=0.2, std=0.3)
    assert scores.keys() == REGIONS.keys()
    assert all(values.keys() == METRICS.keys() for values in scores.values())
    assert all(metric.title and metric.definition and metric.words for metric in METRICS.values())


def test_errors_are_those_of_z_scores_and_psnr_that_of_the_unit_scale():
    target, synthetic, head = volumes()
    scores = score(target, synthetic, head, mean=0.2, std=0.25)
    assert scores["head"]["mae"] == pytest.approx(4 * mae(target, synthetic, head), rel=1e-5)
    assert scores["head"]["psnr"] == psnr(target, synthetic, head, data_range=1.0)


def test_constants_of_the_training_set_change_the_unit_of_errors_but_not_psnr():
    one, other = (score(*volumes(), mean=mean, std=std) for mean, std in ((0.2, 0.25), (0.0, 0.5)))
    assert one["head"]["mae"] == pytest.approx(2 * other["head"]["mae"], rel=1e-5)
    assert one["volume"]["ssim"] == other["volume"]["ssim"]


def test_an_empty_head_is_refused():
    target, synthetic, head = volumes()
    with pytest.raises(DatasetError, match="empty"):
        score(target, synthetic, np.zeros_like(head), mean=0, std=1)


def test_without_constants_the_targets_own_in_its_head_make_the_z_scores():
    from unscanned.evaluation.cases import Images

    target, _, head = volumes()
    images = Images(target, None, head, {}, (1.0, 1.0, 1.0), {}, [])
    assert case_constants(images, Constants(mean=None, std=None, origin="")) == pytest.approx(
        (target[head].mean(), target[head].std())
    )
    assert case_constants(images, Constants(mean=0.1, std=0.2, origin="")) == (0.1, 0.2)


def test_an_arm_that_fails_in_a_way_nobody_foresaw_is_a_row_and_the_others_are_scored(monkeypatch, tmp_path):
    from unscanned.datasets.pairs import Pair
    from unscanned.errors import BUG
    from unscanned.evaluation.cases import Images
    from unscanned.evaluation.metrics import slice_mse
    from unscanned.evaluation.scores import PLANES, score_case

    target, synthetic, head = volumes()
    arms = {"broken": synthetic.copy(), "good": synthetic}

    def fails(target, image, *rest, **more):
        if image is arms["broken"]:
            raise RuntimeError("unforeseen")
        return slice_mse(target, image, *rest, **more)

    monkeypatch.setattr("unscanned.evaluation.scores.slice_mse", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = Images(target, None, head, arms, (1.0, 1.0, 1.0), {}, [])
    pair = Pair("001", None, Path("pd.nii"), Path("t2.nii"))
    scores, slices, failures = [], [], []
    score_case(pair, images, Constants(mean=0.2, std=0.3, origin=""), scores, slices, failures)
    assert {row.arm for row in scores} == {row.arm for row in slices} == {"good"}
    assert len(slices) == len(PLANES)
    assert [(row.arm, BUG in row.reason) for row in failures] == [("broken", True)]
    assert "unforeseen" in next(tmp_path.glob("unscanned-crash-*.txt")).read_text()
