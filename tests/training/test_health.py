"""The signs of a training that goes wrong, on volumes and judges made for it (the fault C13)."""

import numpy as np
import pytest
from torch import nn

from unscanned.training.health import (
    FATAL_AFTER,
    FATAL_STEPS,
    count_signs,
    discriminator_accuracy,
    fixed_patches,
    output_signs,
    sign_warnings,
    unwatched,
)


class Judge(nn.Module):
    """Takes for acquired what is brighter than a limit in the mean, or always or never."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, source, target):
        assert not self.training
        return (target.mean((1, 2, 3, 4)) - self.limit)[:, None]


@pytest.mark.parametrize(
    ("limit", "accuracy"), [(0.5, 1.0), (-1.0, 0.5), (2.0, 0.5)], ids=["always right", "all acquired", "all synthetic"]
)
def test_the_accuracy_of_a_judge_is_the_share_of_patches_judged_rightly(limit, accuracy):
    target, synthetic = np.ones((16, 16, 32), np.float32), np.zeros((16, 16, 32), np.float32)
    judge = Judge(limit)
    places = [(0, 0, 0), (0, 0, 16)]
    assert discriminator_accuracy(judge, target, target, synthetic, places, 16) == accuracy
    assert judge.training
    assert discriminator_accuracy(Judge(0.5), target, synthetic, target, places, 16) == 0.0
    synthetic[:, :, 16:] = 1
    assert discriminator_accuracy(Judge(0.5), target, target, synthetic, places, 16) == 0.75


@pytest.mark.parametrize("accuracy", [1.0, 0.5])
def test_a_judge_that_is_always_right_or_guesses_is_a_warning_after_three_validations(accuracy):
    counts = {}
    said = []
    for _ in range(5):
        counts = count_signs({"d_accuracy": accuracy}, counts)
        said.append(sign_warnings({"d_accuracy": accuracy}, counts))
    assert [len(warnings) for warnings in said] == [0, 0, 1, 0, 0]
    assert "d_accuracy" in said[2][0]
    assert count_signs({"d_accuracy": 0.8}, counts) == {}


def test_a_copy_of_the_source_and_a_constant_show_in_the_signs():
    random = np.random.default_rng(0)
    target = random.normal(size=(48, 48, 48)).astype(np.float32)
    head = np.ones(target.shape, bool)
    good = output_signs(target + 0.1, target, head, 16)
    assert good["std_ratio"] == pytest.approx(1, abs=1e-3)
    assert good["variety"] == pytest.approx(1, abs=1e-3)
    assert good["mae_ratio"] < 0.2
    constant = output_signs(np.zeros_like(target), target, head, 16)
    assert (constant["std_ratio"], constant["variety"]) == (0, 0)
    unrelated = output_signs(random.normal(size=target.shape).astype(np.float32), target, head, 16)
    assert unrelated["mae_ratio"] > 1
    assert unrelated["variety"] == pytest.approx(1, abs=0.05)


def test_a_training_in_which_no_collapse_can_be_seen_says_why():
    enough = FATAL_AFTER, FATAL_STEPS
    assert unwatched(*enough, validates=True, goes_on=True) == []
    assert unwatched(2, 10, validates=True, goes_on=False) == []  # what is so short may end as it is
    for few in ((FATAL_AFTER - 1, FATAL_STEPS), (FATAL_AFTER, FATAL_STEPS - 1)):
        (words,) = unwatched(*few, validates=True, goes_on=True)
        assert f"{few[0]} validations with the adversary and {few[1]} steps" in words
    (words,) = unwatched(*enough, validates=False, goes_on=False)
    assert words.startswith("split.validation = 0")
    assert words.endswith("not finite will end it")
    (words,) = unwatched(*enough, validates=False, goes_on=True)
    assert words.endswith("go on without its adversary")


@pytest.mark.parametrize("length", [3, 8, 15, 23])
def test_the_patches_that_are_looked_at_lie_all_over_the_head(length):
    places = fixed_patches(np.ones((16 * length, 16, 16), bool), 16)
    along = [i // 16 for i, _, _ in places]
    assert len(set(along)) == len(along) == min(8, length)
    assert (along[0], along[-1]) == (0, length - 1)
    assert max(np.diff(along)) <= -(-length // 7)
