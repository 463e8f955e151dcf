"""Section G, bounds: values that nothing could use are refused at once; a model is never read half replaced."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tool import ENVIRONMENT

from unscanned.errors import CheckpointError
from unscanned.files import write_json
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.training.checkpoint import load_checkpoint

HUGE = 2**64


@pytest.mark.parametrize(
    "option",
    [
        ["--training.seed", HUGE],
        ["--split.seed", HUGE],
        ["--training.patch", 8000],
        ["--training.patch", 512],
        ["--training.margin", 100_000],
        ["--training.batch", 10**9],
        ["--training.batch", 10**6],
        ["--training.threads", 10**9],
        ["--training.workers", 10**6],
        ["--training.epochs", 10**23],
        ["--training.steps-per-epoch", 10**23],
        ["--training.learning-rate", 1e300],
        ["--generator.slope", 1e300],
        ["--loss.l1", 1e300],
        ["--context.stages", 10**6],
        ["--context.folds", 10**9],
        ["--prepare.spacing-mm", 1e300],
    ],
    ids=lambda option: " ".join(map(str, option)),
)
def test_g09_a_setting_out_of_all_proportion_is_refused_by_its_name_before_anything_is_read(cli, tmp_path, option):
    began = time.monotonic()
    done = cli("train", tmp_path / "missing", "-o", tmp_path / "out", "--preset", "demo", *option)
    assert done.returncode == 2, done.stderr
    assert option[0].lstrip("-").replace("-", "_") in done.stderr
    assert "found" in done.stderr
    assert time.monotonic() - began < 20
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("preset", "option", "words"),
    [
        ("strong", ["--training.patch", 232], "found 232, expected at most 128, the shortest edge of prepare.shape"),
        ("strong", ["--training.average", 1], "must be below 1"),
        ("strong", ["--training.average", "nan"], "found NaN"),
        ("strong", ["--training.final-rate", 2], "must be at most 1"),
        ("strong", ["--training.clip-norm", 0], "must be positive"),
        ("strong", ["--augmentation.blur", 10], "augmentation that leaves nothing of a patch"),
        ("strong", ["--augmentation.resolution", 30], "augmentation that leaves nothing of a patch"),
        ("strong", ["--training.keep", 0.5], "there is nothing to keep a share of"),
        ("strong", ["--augmentation.field", 1], "must be below 1"),
        ("strong", ["--augmentation.noise", 1], "must be below 1"),
        ("strong", ["--augmentation.intensity", 3], "must be at most 2"),
        ("strong", ["--augmentation.flip", "nan"], "found NaN"),
        ("strong", ["--loss.l1", 0, "--loss.gdl", 0], "nothing to learn"),
        ("strong", ["--generator.options.filters", 0], "must be positive; found 0"),
        ("strong", ["--simulated.share", 0.5], "simulated pairs need a voxel size"),
        ("strong-gan", ["--training.patch", 36], "expected a multiple of 8"),
        ("strong", ["--training.patch", 36, "--training.margin", 2], "expected a multiple of 8"),
        ("resgan-acm", ["--simulated.share", 0.5], "no volume of the stage before"),
        ("resgan-acm", ["--augmentation.noise", 0.02], "volume of the stage before was made from the source as it is"),
        ("resgan-acm", ["--augmentation.resolution", 2], "volume of the stage before was made from the source"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_g09_a_recipe_that_cannot_be_is_refused_before_anything_is_read(cli, tmp_path, preset, option, words):
    done = cli("train", tmp_path / "missing", "-o", tmp_path / "out", "--preset", preset, *option)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--threads", 10**9], ["--edge", 10**5], ["--batch", 10**9]])
def test_g09_a_workload_out_of_all_proportion_is_refused_by_its_name(cli, option):
    done = cli("benchmark", *option)
    assert done.returncode == 2
    assert option[0].lstrip("-") in done.stderr


def test_g09_an_odd_backend_of_matplotlib_does_not_stop_a_report(cli, tiny_dataset, tiny_run, tmp_path, monkeypatch):
    assert cli("synthesize", tiny_run, tiny_dataset, "-o", tmp_path / "arm", "--force").returncode == 0
    assert cli("evaluate", tiny_dataset, tmp_path / "arm", "-o", tmp_path / "scores").returncode == 0
    program = [sys.executable, "-m", "unscanned", "report", tmp_path / "scores", "-o", tmp_path / "report.html"]
    runs = ["--runs", f"x={tiny_run}"]
    done = subprocess.run(
        [*map(str, program), *runs],
        env={**ENVIRONMENT, "MPLBACKEND": "odd"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "{}"])
def test_g09_an_evaluation_or_a_sidecar_that_lacks_what_it_should_hold_is_refused_by_its_file(
    cli, tmp_path, tiny_dataset, tiny_run, content
):
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "evaluation.json").write_text(content)
    done = cli("report", scores, "-o", tmp_path / "report.html")
    assert done.returncode == 3
    assert "evaluation.json" in done.stderr
    scan = tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    assert cli("synthesize", tiny_run, scan, "-o", tmp_path / "arm", "--force").returncode == 0
    volume = next((tmp_path / "arm").rglob("*.nii.gz"))
    volume.with_name(volume.name.replace(".nii.gz", ".json")).write_text(content)
    done = cli("verify", volume)
    assert done.returncode == 3
    assert cli("synthesize", tiny_run, scan, "-o", tmp_path / "arm", "--force").returncode == 0
    assert cli("verify", volume).returncode == 0


def test_g10_a_model_that_is_rewritten_while_it_is_loaded_is_never_one_s_facts_with_another_s_weights(
    tiny_run, tmp_path
):
    model = load_model(tiny_run)
    other = load_model(tiny_run)
    for tensor in other.generators[0].parameters():
        tensor.data.fill_(0.5)
    folders = {name: save_model(m, tmp_path / name) for name, m in (("one", model), ("other", other))}
    whole = {}
    for folder in folders.values():
        loaded = load_model(folder)
        whole[loaded.sha256] = loaded.weights_sha256
    assert len(whole) == 2
    target = tmp_path / "target"
    child = os.fork()
    if child == 0:
        try:
            ends = time.monotonic() + 12
            while time.monotonic() < ends:
                for each in (model, other):
                    save_model(each, target)
        finally:
            os._exit(0)
    loads = refused = 0
    try:
        while loads < 200 and os.waitpid(child, os.WNOHANG) == (0, 0):
            try:
                loaded = load_model(target)
            except CheckpointError:
                refused += 1
                continue
            loads += 1
            assert whole[loaded.sha256] == loaded.weights_sha256
            first = next(loaded.generators[0].parameters())
            is_other = bool((first == 0.5).all())
            assert is_other == (loaded.weights_sha256 == list(whole.values())[1])
    finally:
        if loads >= 200:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        write_json(tmp_path / "counts.json", {"loads": loads, "refused": refused})
    assert loads > 20


def test_g10_a_checkpoint_that_is_being_rewritten_is_never_mixed(tmp_path):
    """One process writes step 1 again and again, with weights that say which; the other finds those or none."""
    program = (
        "import sys, torch\n"
        "from unscanned.training.checkpoint import save_checkpoint\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    tensors = {'generator/weight': torch.full((50_000,), float(number))}\n"
        "    save_checkpoint(sys.argv[1], 1, tensors, {'record': {'number': number}}, identity={})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=ENVIRONMENT)
    seen, refused, end = set(), 0, time.monotonic() + 60
    try:
        while len(seen) < 20 and time.monotonic() < end:
            try:
                found = load_checkpoint(tmp_path, {})
            except CheckpointError:
                refused += 1  # the weights are new and the manifest is not yet
                continue
            if found is not None:
                number = found.facts.record["number"]
                assert (found.tensors["generator/weight"] == number).all()
                seen.add(number)
    finally:
        writer.kill()
        writer.wait()
    assert len(seen) >= 20, f"{refused} loads were refused"
