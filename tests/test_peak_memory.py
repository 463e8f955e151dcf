"""The measure of memory that the tests of hostile files rest on."""

import pytest
from peak_memory import MEASURABLE, WHERE, peak_growth_mib


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_growth_below_an_earlier_peak_is_seen_and_none_where_there_is_none():
    assert peak_growth_mib(lambda: b"x" * 200 * 2**20) > 190
    assert peak_growth_mib(lambda: b"x" * 100 * 2**20) > 90
    assert peak_growth_mib(lambda: None) < 10
