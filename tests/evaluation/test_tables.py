"""Paired comparisons of arms, from scores of cases."""

import pytest

from unscanned.evaluation.tables import comparisons, over_seeds, summaries
from unscanned.formats.evaluation import Score


def score(arm, subject, session, psnr):
    case = f"sub-{subject}_ses-{session}"
    return Score(case=case, subject=subject, session=session, arm=arm, region="head", values={"psnr": psnr})


def test_an_arm_that_lacks_the_harder_session_is_compared_on_the_scans_of_both():
    subjects = [f"{number:02d}" for number in range(6)]
    scores = []
    for number, subject in enumerate(subjects):
        for session, base in (("1", 30.0), ("2", 20.0)):
            scores.append(score("source", subject, session, base - 5))
            scores.append(score("a", subject, session, base + number))
            if session == "1" or number >= 3:
                scores.append(score("b", subject, session, base + number + 1))
    found = {(row.arm, row.against): row for row in comparisons(["source", "a", "b"], "a", scores)}
    assert found["b", "a"].difference == pytest.approx(1)
    assert (found["b", "a"].n, found["a", "source"].n) == (6, 6)
    assert found["b", "a"].note.startswith("3 case(s) that one of the two lacks left out")
    assert "left out" not in found["a", "source"].note


def test_a_seed_that_lacks_a_session_does_not_change_the_weight_of_the_others():
    rows = [("a_seed-0", "1", 30.0), ("a_seed-0", "2", 20.0), ("a_seed-1", "1", 32.0)]
    scores = [score(arm, "01", session, psnr) for arm, session, psnr in rows]
    counted = over_seeds(scores, {"a": ["a_seed-0", "a_seed-1"]})
    assert summaries(["a"], counted, ["01"])["a"]["head"]["psnr"].mean == pytest.approx((31 + 20) / 2)
