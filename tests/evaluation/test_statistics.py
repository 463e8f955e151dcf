import math

import numpy as np
import pytest
from scipy import stats

from unscanned.evaluation.statistics import compare, subject_means, summarize


def test_sessions_are_averaged_within_a_subject_first():
    assert subject_means([("a", 1.0), ("a", 3.0), ("b", 10.0)]) == {"a": 2.0, "b": 10.0}


def test_the_summary_is_mean_and_sample_sd_with_n_of_n():
    summary = summarize([1.0, 2.0, 6.0], of=5)
    assert (summary.mean, summary.n, summary.of) == (3.0, 3, 5)
    assert summary.sd == pytest.approx(np.std([1, 2, 6], ddof=1))


@pytest.mark.parametrize(("values", "mean"), [([], None), ([4.0], 4.0)])
def test_below_two_subjects_there_is_no_sd(values, mean):
    summary = summarize(values, of=3)
    assert (summary.mean, summary.sd, summary.n) == (mean, None, len(values))


def test_a_perfect_match_keeps_its_infinite_score_and_has_no_sd():
    summary = summarize([math.inf, 30.0], of=2)
    assert (summary.mean, summary.sd) == (math.inf, None)


def test_the_interval_and_the_test_are_those_of_scipy():
    random = np.random.default_rng(0)
    first = {str(i): value for i, value in enumerate(random.normal(30, 2, 12))}
    second = {subject: value + random.normal(0.5, 0.4) for subject, value in first.items()}
    result = compare(first, second)
    reference = stats.ttest_rel(list(second.values()), list(first.values())).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high))
    assert result.wilcoxon_p == pytest.approx(stats.wilcoxon([second[s] - first[s] for s in first]).pvalue)
    assert (result.n, result.note) == (12, "")


def test_pairing_sees_a_small_gain_that_the_spread_of_subjects_hides():
    first = {str(i): 20.0 + 5 * i for i in range(8)}
    second = {subject: value + 0.5 + 0.01 * (-1) ** int(subject) for subject, value in first.items()}
    result = compare(first, second)
    assert 0.4 < result.low < result.difference < result.high < 0.6


def test_a_difference_that_is_the_same_for_all_has_an_interval_of_that_point_and_no_warning(recwarn):
    first = {str(i): float(i) for i in range(8)}
    result = compare(first, {subject: value + 0.5 for subject, value in first.items()})
    assert (result.difference, result.low, result.high) == (0.5, 0.5, 0.5)
    assert not recwarn.list


def test_only_subjects_that_both_arms_have_are_compared():
    result = compare({"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 3.0, "c": 11.0, "d": 0.0})
    assert (result.difference, result.n) == (1.5, 2)


@pytest.mark.parametrize(("second", "n"), [({}, 0), ({"a": 2.0}, 1)])
def test_below_two_subjects_there_is_no_interval_and_the_note_says_so(second, n):
    result = compare({"a": 1.0, "b": 2.0}, second)
    assert (result.n, result.low, result.high, result.wilcoxon_p) == (n, None, None, None)
    assert f"no interval: {n} subject(s)" in result.note


def test_below_six_subjects_there_is_an_interval_but_no_wilcoxon_test():
    result = compare(dict.fromkeys("abcde", 1.0), {s: 2.0 + 0.1 * i for i, s in enumerate("abcde")})
    assert result.wilcoxon_p is None
    assert result.low is not None
    assert "needs 6" in result.note


def test_equal_arms_differ_by_nothing():
    scores = {str(i): float(i) for i in range(7)}
    result = compare(scores, scores)
    assert (result.difference, result.low, result.high, result.wilcoxon_p) == (0, 0, 0, 1)


def test_an_infinite_score_is_left_out_of_a_comparison_and_named():
    result = compare({"a": math.inf, "b": 1.0, "c": 2.0}, {"a": math.inf, "b": 2.0, "c": 3.5})
    assert (result.n, result.difference) == (2, 1.25)
    assert "1 subject(s) with an infinite score" in result.note
