import json

import pytest

from unscanned.datasets.pairs import find_pairs
from unscanned.datasets.split import split_subjects
from unscanned.demo import demo
from unscanned.errors import Interrupted


@pytest.mark.parametrize("subjects", [0, 6])
def test_too_few_subjects_are_refused_before_any_is_simulated(cli, tmp_path, subjects):
    done = cli("demo", "-o", tmp_path / "out", "--subjects", subjects)
    assert done.returncode == 2
    assert "at least 7: 5 train, 1 validation, 1 test" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_demo_stops_in_its_simulation_too_and_says_how_far_it_is(tmp_path):
    told = []
    with pytest.raises(Interrupted, match="simulation, sub-002: 1 of 7"):
        demo(
            tmp_path,
            subjects=7,
            progress=lambda *now: told.append(now),
            should_stop=(tmp_path / "dataset" / "sub-001" / "anat" / "sub-001_PDw.nii.gz").exists,
        )
    (done, total, label) = told[-1]
    assert label == "simulation, sub-001"
    assert done < 0.1 * total


@pytest.mark.slow
def test_which_subjects_test_is_drawn_from_the_seed(tmp_path):
    with pytest.raises(Interrupted):
        demo(tmp_path, subjects=7, seed=1, should_stop=(tmp_path / "arms" / "strong" / "log.jsonl").exists)
    pairs = find_pairs(tmp_path / "dataset")
    first, second = (split_subjects(pairs, train=5, validation=1, test=1, seed=seed) for seed in (0, 1))
    assert json.loads((tmp_path / "arms" / "strong" / "split.json").read_text()) == second != first
