import csv
import sys

import pytest
import real_scans

from unscanned.datasets.pairs import select_pairs
from unscanned.evaluation.baselines import fit_regression
from unscanned.evaluation.cases import training_pair
from unscanned.evaluation.metrics import psnr


def test_each_scan_stands_beside_a_regression_that_has_not_seen_its_patient(
    tiny_dataset, tiny_run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    words = [str(out), str(tiny_dataset), "--models", f"tiny={tiny_run / 'model'}", "--source", "PD", "--target", "T2"]
    monkeypatch.setattr(sys, "argv", ["real_scans.py", *words])
    real_scans.main()
    with open(out / "scores.csv", encoding="utf-8") as file:
        scores = {(row["case"], row["arm"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    pairs = [pair for pair in select_pairs(tiny_dataset, source="PD", target="T2").pairs if pair.target is not None]
    assert {arm for _, arm, _ in scores} == {"source", "regression", "own-regression", "tiny"}
    for pair in pairs:
        source, target, head = training_pair(pair)
        fitted = fit_regression(training_pair(other) for other in pairs if other.subject != pair.subject)
        expected = psnr(target, fitted(source, head), head, data_range=1.0)
        assert scores[pair.case, "regression", "psnr"] == pytest.approx(expected, rel=1e-4)
        assert scores[pair.case, "own-regression", "psnr"] >= scores[pair.case, "regression", "psnr"]
        assert (out / f"{pair.case}.png").read_bytes().startswith(b"\x89PNG")
    assert "| tiny | psnr |" in capsys.readouterr().out
