import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unscanned.datasets.pairs import Pair
from unscanned.datasets.split import split_subjects
from unscanned.errors import DatasetError


def pairs_of(subjects: list[str], sessions: tuple[str | None, ...] = (None,)) -> list[Pair]:
    return [Pair(subject, session, Path("s"), Path("t")) for subject in subjects for session in sessions]


@settings(max_examples=100)
@given(
    subjects=st.sets(st.text("abc019", min_size=1, max_size=5), min_size=6, max_size=30).map(sorted),
    seed=st.integers(0, 2**31),
    numbers=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_a_split_is_disjoint_complete_and_does_not_depend_on_the_order(subjects, seed, numbers):
    train, validation, test = numbers
    pairs = pairs_of(subjects, ("1", "2"))
    split = split_subjects(pairs, train=train, validation=validation, test=test, seed=seed)
    assert [len(split[part]) for part in ("train", "validation", "test")] == [train, validation, test]
    listed = [subject for part in split.values() for subject in part]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(subjects)
    assert split == split_subjects(pairs[::-1], train=train, validation=validation, test=test, seed=seed)


def test_seeds_give_different_splits_and_one_seed_always_the_same():
    pairs = pairs_of([f"{i:02d}" for i in range(20)])
    splits = [split_subjects(pairs, train=10, validation=2, test=3, seed=seed) for seed in range(5)]
    assert len({json.dumps(split) for split in splits}) == 5
    assert splits[0]["validation"] == ["06", "08"]


@settings(max_examples=100)
@given(
    subjects=st.sets(st.text("abc019", min_size=1, max_size=5), min_size=6, max_size=30).map(sorted),
    seed=st.integers(0, 2**31),
    folds=st.integers(2, 6),
    validation=st.integers(0, 2),
)
def test_folds_test_each_subject_once_on_models_that_never_saw_it(subjects, seed, folds, validation):
    pairs = pairs_of(subjects, ("1", "2"))
    given = {"train": 60, "validation": validation, "test": 26, "seed": seed, "folds": folds}
    splits = [split_subjects(pairs, **given, fold=fold) for fold in range(1, folds + 1)]
    assert sorted(subject for split in splits for subject in split["test"]) == subjects
    for split in splits:
        assert sorted(subject for part in split.values() for subject in part) == subjects
        assert len(split["validation"]) == validation
        assert len(split["test"]) in (len(subjects) // folds, -(-len(subjects) // folds))
    assert splits[0] == split_subjects(pairs[::-1], **given, fold=1)


def test_folds_do_not_choose_the_epoch_on_the_same_subjects():
    pairs = pairs_of([f"{i:02d}" for i in range(10)])
    splits = [split_subjects(pairs, train=1, validation=2, test=1, folds=5, fold=fold) for fold in range(1, 6)]
    assert len({subject for split in splits for subject in split["validation"]}) == 10


@pytest.mark.parametrize(("folds", "validation"), [(5, 0), (2, 2), (4, 3)])
def test_too_few_subjects_for_the_folds_are_refused(folds, validation):
    with pytest.raises(DatasetError, match=f"too few subjects for the folds; found 4 .* {folds} folds"):
        split_subjects(pairs_of(["a", "b", "c", "d"]), train=1, validation=validation, test=1, folds=folds, fold=1)


def test_too_few_subjects_are_refused_with_both_numbers():
    with pytest.raises(DatasetError, match="found 2 subjects with both contrasts, expected 60 train"):
        split_subjects(pairs_of(["a", "b"], ("1", "2")), train=60, validation=3, test=26)


def test_a_split_is_taken_from_a_file(tmp_path):
    file = tmp_path / "split.json"
    file.write_text('{"train": ["sub-b", "a"], "validation": ["c"], "test": []}')
    split = split_subjects(pairs_of(["a", "b", "c", "d"]), train=60, validation=3, test=26, file=file)
    assert split == {"train": ["a", "b"], "validation": ["c"], "test": []}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"train": ["a"], "validation": ["a"], "test": []}', "more than once; found a"),
        ('{"train": ["x"], "validation": [], "test": []}', "unknown subjects; found x"),
        ('{"train": ["a"], "test": []}', "no key 'validation'"),
        ('{"train": 3, "validation": [], "test": []}', "content of another kind"),
        ("[]", "content of another kind"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, content, reason):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DatasetError, match=reason):
        split_subjects(pairs_of(["a", "b"]), train=1, validation=1, test=0, file=tmp_path / "split.json")
