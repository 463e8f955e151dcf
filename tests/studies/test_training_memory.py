"""The memory of a training does not grow with its subjects."""

import pytest
import training_memory
from peak_memory import MEASURABLE, WHERE

LEAST_MIB = 40
"What two trainings alike differ by; a case of this size would add half a MiB."


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_ten_times_the_subjects_take_no_more_memory_without_the_pages_of_files():
    few, many = training_memory.measure([4, 40], (64, 64, 48))
    assert many["peak_mib"] - few["peak_mib"] < LEAST_MIB


def test_it_would_show_volumes_that_are_held():
    edge = 64 * 64 * 48 * 9 / 2**20
    assert 36 * edge > LEAST_MIB
