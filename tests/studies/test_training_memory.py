"""The memory of a training does not grow with its subjects."""

import math

import pytest
import training_memory
from peak_memory import MEASURABLE, WHERE

SHAPE = (96, 96, 64)
LEAST_MIB = 100
"Far more than two trainings alike differ by: up to 50 MiB on a busy machine."


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_ten_times_the_subjects_take_no_more_memory_without_the_pages_of_files():
    few, many = training_memory.measure([4, 40], SHAPE)
    assert many["peak_mib"] - few["peak_mib"] < LEAST_MIB


def test_it_would_show_volumes_that_are_held():
    case_mib = math.prod(SHAPE) * 9 / 2**20
    assert 36 * case_mib > 1.5 * LEAST_MIB
