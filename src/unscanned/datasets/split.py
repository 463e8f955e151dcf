"""Which subjects train, which choose the epoch and which test: drawn by a hash, or read from a file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from unscanned.datasets.pairs import Pair
from unscanned.errors import DatasetError, listed
from unscanned.files import read_json

__all__ = ["read_split", "split_subjects"]

_PARTS = ("train", "validation", "test")


def split_subjects(
    pairs: Iterable[Pair],
    *,
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
    file: str | Path | None = None,
    folds: int = 1,
    fold: int = 1,
) -> dict[str, list[str]]:
    """Divide the subjects into disjoint parts; all sessions of a subject are in one part.

    The subjects are drawn in the order of a hash of seed and subject. So the split is the same on every machine, and a
    subject added to the dataset does not shuffle the others.

    Args:
        pairs: The dataset.
        train: Number of subjects to train on.
        validation: Number of subjects to choose the best epoch with.
        test: Number of subjects to score.
        seed: Chooses another draw.
        file: JSON file with the lists "train", "validation" and "test" of subjects; the numbers and the seed are then
            ignored.
        folds: Parts that all subjects are divided into, for a cross-validation; 1 takes the numbers.
        fold: The part to test on, from 1. Validation subjects come from the parts that follow it, so that they are not
            the same in all folds; all that are left train.

    Returns:
        Sorted subject labels under the keys "train", "validation" and "test". Subjects beyond the sum are in no part.
        Of all folds together, each subject is in one "test".

    Raises:
        DatasetError: There are too few subjects, or the file is unreadable, names unknown subjects or repeats one.
    """
    subjects = sorted({pair.subject for pair in pairs})
    if file is not None:
        return _checked(read_split(file), subjects, Path(file))
    drawn = sorted(subjects, key=lambda subject: hashlib.sha256(f"{seed}:{subject}".encode()).digest())
    if folds > 1:
        return _of_fold(drawn, validation, folds, fold)
    counts = dict(zip(_PARTS, (train, validation, test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) > len(subjects):
        raise DatasetError(
            "there are too few subjects for the split",
            found=f"{len(subjects)} subjects with both contrasts",
            expected=" + ".join(f"{count} {part}" for part, count in counts.items()) + f" = {sum(counts.values())}",
            do="Lower split.train, split.validation or split.test, or add subjects.",
        )
    left = iter(drawn)
    return {part: sorted(next(left) for _ in range(count)) for part, count in counts.items()}


def read_split(file: str | Path) -> dict[str, list[str]]:
    """Return the sorted subject labels of a split file, such as the split.json of a run.

    Raises:
        DatasetError: The file is not JSON with the lists "train", "validation" and "test".
    """
    try:
        content = read_json(file)
        return {part: sorted(str(name).removeprefix("sub-") for name in content[part]) for part in _PARTS}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DatasetError(
            "the split cannot be read",
            where=file,
            found=error,
            expected='JSON such as {"train": ["01", "02"], "validation": ["03"], "test": ["04"]}',
        ) from error


def _of_fold(drawn: list[str], validation: int, folds: int, fold: int) -> dict[str, list[str]]:
    tested, *others = (drawn[number % folds :: folds] for number in range(fold - 1, fold - 1 + folds))
    left = [subject for part in others for subject in part]
    if folds > len(drawn) or validation >= len(left):
        raise DatasetError(
            "there are too few subjects for the folds",
            found=f"{len(drawn)} subjects with both contrasts",
            expected=f"1 to test in each of {folds} folds, and beside them {validation} to validate and 1 to train",
            do="Take fewer folds, lower split.validation, or add subjects.",
        )
    return {"train": sorted(left[validation:]), "validation": sorted(left[:validation]), "test": sorted(tested)}


def _checked(split: dict[str, list[str]], subjects: list[str], file: Path) -> dict[str, list[str]]:
    counts = Counter(subject for part in _PARTS for subject in split[part])
    repeated = sorted(subject for subject, count in counts.items() if count > 1)
    unknown = sorted(counts.keys() - set(subjects))
    if repeated or unknown:
        raise DatasetError(
            "the split names subjects more than once" if repeated else "the split names unknown subjects",
            where=file,
            found=listed(repeated or unknown),
            expected="each subject once" if repeated else f"some of the {len(subjects)} subjects of the dataset",
        )
    return split
