"""Paired differences between tables of different runs."""

import csv
import re
from pathlib import Path

import paired_difference
import pytest

from unscanned.errors import SettingsError

SCORES = Path(__file__).parents[1] / "docs" / "experiments" / "scores"


def test_two_arms_of_one_table_differ_by_what_that_table_says():
    path = SCORES / "recipe-gdl-1020s.csv"
    with open(SCORES / "recipe-gdl-1020s-table.csv", encoding="utf-8") as file:
        told = {(row["variant"], row["seed"], row["metric"]): row for row in csv.DictReader(file)}
    for only, seed in (("", ""), (":1", "1")):
        first, second = (paired_difference.read_arm(path, arm + only) for arm in ("strong", "gdl"))
        table = paired_difference.differences(first, second).splitlines()
        shown = next(line for line in table if line.startswith("| psnr |"))
        row = told["gdl", seed, "psnr"]
        assert shown.startswith("| psnr | 4 | ")
        numbers = [float(number) for number in re.findall(r"[+-]\d\.\d+", shown)]
        # The files hold five digits.
        assert numbers == pytest.approx([float(row[key]) for key in ("minus strong", "low", "high")], abs=0.002)


def test_tables_of_evaluate_and_of_real_scans_are_read_too():
    tuned = paired_difference.read_arm(SCORES / "fine-tuning.csv", "as-it-is")
    fine = paired_difference.read_arm(SCORES / "real-slices.csv", "t1w-t2w:as acquired")
    assert "| ssim | 6 |" in paired_difference.differences(tuned, fine)


def test_an_arm_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(SettingsError, match="found gdl, noise-free, regression, source, strong, tissues"):
        paired_difference.read_arm(SCORES / "recipe-gdl-1020s.csv", "strnog")


@pytest.mark.parametrize(
    ("file", "arm", "words"),
    [
        ("real-slices.csv", "t1w-t2w", "found 3 mm slices, as acquired.*t1w-t2w:ONE OF THEM"),
        ("recipe-gdl-1020s-table.csv", "gdl", "no scores of subjects"),
    ],
)
def test_what_cannot_be_compared_is_refused(file, arm, words):
    with pytest.raises(SettingsError, match=words):
        paired_difference.read_arm(SCORES / file, arm)
    with pytest.raises(SettingsError, match="no interval"):
        paired_difference.differences({"psnr": [("01", 1.0), ("02", 1.0)]}, {"psnr": [("02", 2.0), ("03", 2.0)]})
