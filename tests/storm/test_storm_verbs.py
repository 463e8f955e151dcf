"""The short form of the storm over the other verbs, and the proof that it would see what is not whole."""

import pytest
from storm import storm_verbs
from storm.storm_verbs import Outcome, _inspect, facts, storm


@pytest.mark.slow
def test_a_verb_that_was_killed_comes_to_the_end_of_an_uninterrupted_one(tmp_path, monkeypatch):
    words = storm_verbs.words_of
    chosen = ("evaluate", "prepare", "dicom")
    monkeypatch.setattr(storm_verbs, "words_of", lambda *where: {verb: words(*where)[verb] for verb in chosen})
    outcome = storm(tmp_path, 3, seed=1)
    assert outcome.kills.total() == 3
    assert outcome.reruns >= 1
    assert (outcome.partial, outcome.wrong) == (0, 0), outcome.reasons


@pytest.mark.parametrize("content", ["whole and more", "wh", ""])
def test_a_file_that_is_not_whole_under_its_final_name_is_seen(tmp_path, content):
    file = tmp_path / "out" / "scores.csv"
    file.parent.mkdir()
    file.write_text("whole")
    truth, outcome = facts(file.parent), Outcome()
    _inspect("evaluate", file.parent, truth, outcome)
    assert (outcome.files, outcome.partial) == (1, 0)
    file.write_text(content)
    _inspect("evaluate", file.parent, truth, outcome)
    assert (outcome.files, outcome.partial) == (2, 1)
