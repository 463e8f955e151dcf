"""Section C of the table of faults for a training on two devices: each test stops, kills or freezes real processes."""

import signal

import numpy as np
import pytest
import safetensors.torch
import tool
import torch
import training_devices as devices

from unscanned.machine.precision import available
from unscanned.settings import to_toml
from unscanned.simulation.relaxation import NAMES
from unscanned.simulation.tissues import LABELS
from unscanned.training.batches import PatchBatches
from unscanned.training.log import read_log
from unscanned.training.prepare import Case, normalization
from unscanned.volumes.nifti import write_volume

pytestmark = pytest.mark.timeout(900)  # each test starts up to nine processes

EPOCHS = ("--training.epochs", 10)


@pytest.fixture(scope="module")
def settings(tiny_settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(to_toml(tiny_settings.change(training={"checkpoint_minutes": 1e-6})))
    return path


@pytest.fixture(scope="module")
def whole(tiny_dataset, settings, tmp_path_factory):
    """A training on two devices that nothing interrupts."""
    run = tmp_path_factory.mktemp("devices") / "whole"
    done = devices.train(tiny_dataset, run, settings, *EPOCHS)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return run


def weights(run):
    return safetensors.torch.load_file(max((run / "checkpoints").glob("*.safetensors")))


def steps(run):
    kept = ("step", "d_loss", "g_loss", "l1", "adversarial")
    return [{key: event[key] for key in kept} for event in read_log(run / "log.jsonl") if event["event"] == "step"]


def assert_goes_on(tiny_dataset, run, settings, whole):
    """The next launch takes the steps that are left, and ends where the uninterrupted training did, bit for bit."""
    done = devices.train(tiny_dataset, run, settings, *EPOCHS)
    assert done.returncode == 0, done.stderr
    assert steps(run) == steps(whole)
    one, other = weights(run), weights(whole)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "number", "code"),
    [("launcher", signal.SIGTERM, 143), ("launcher", signal.SIGINT, 130), (1, signal.SIGINT, 130)],
)
def test_c08_a_signal_to_one_process_ends_all_after_a_common_step(
    tmp_path, tiny_dataset, settings, whole, to, number, code
):
    run = tmp_path / "run"
    with devices.start(tiny_dataset, run, settings, *EPOCHS) as process:
        devices.await_step(process, run, 4)
        ranks = devices.ranks(process)
        (process if to == "launcher" else ranks[to]).send_signal(number)
        found, lines, _ = devices.end(process)
    assert found == code
    (line,) = lines
    assert f"training was interrupted; found step {devices.last_step(run)} of 30, saved" in line
    assert not any(rank.is_running() for rank in ranks.values())
    assert_goes_on(tiny_dataset, run, settings, whole)


LOST = {
    "killed": (signal.SIGKILL, r"a process of the training was ended from outside; found rank 1, by SIGKILL"),
    "frozen": (signal.SIGSTOP, "a process of the training hangs; found no sign of life from rank 1 for 15 s"),
    "gone with exit code 0": (signal.SIGUSR1, "another process of the training is lost; found rank 0 waits"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LOST)
def test_c15_a_rank_that_is_lost_ends_all_within_a_minute_and_the_next_launch_goes_on(
    tmp_path, tiny_dataset, settings, whole, how
):
    number, message = LOST[how]
    run = tmp_path / "run"
    with devices.start(tiny_dataset, run, settings, *EPOCHS) as process:
        devices.await_step(process, run, 4)
        ranks = devices.ranks(process)
        ranks[1].send_signal(number)
        code, lines, seconds = devices.end(process)
    assert (code, seconds < 60) == (7, True)
    (line,) = lines
    assert message in line
    assert "Traceback" not in line
    assert not any(rank.is_running() for rank in ranks.values())
    assert_goes_on(tiny_dataset, run, settings, whole)


@pytest.mark.slow
def test_c07_a_second_training_on_several_devices_exits_8_with_one_message(tmp_path, tiny_dataset, settings):
    run = tmp_path / "run"
    with devices.start(tiny_dataset, run, settings, "--training.epochs", 10_000) as first:
        devices.await_step(first, run)
        second = devices.train(tiny_dataset, run, settings, "--training.epochs", 10_000)
        first.terminate()
        assert devices.end(first)[0] == 143
    assert second.returncode == 8
    assert second.stderr.count("the folder is in use by another run") == 1
    assert len(second.stderr.splitlines()) == 1


@pytest.fixture
def on_devices(cli):
    """Train to the end: on several devices in processes, on one within this process."""

    def train(count, dataset, run, settings, *words):
        if count > 1:
            done = devices.train(dataset, run, settings, *words, devices=count)
        else:
            done = cli("train", dataset, "-o", run, "-p", "demo", "--settings", settings, *words)
        assert done.returncode == 0, done.stderr
        return done

    return train


@pytest.fixture(scope="module")
def label_maps(small_head, tmp_path_factory):
    """Two maps of one small head; the package's own heads, which each process would draw, take seconds."""
    number = {name: key for key, name in LABELS.items()}
    numbers = np.array([number.get(name, 0) for name in NAMES], np.float32)[small_head.tissues]
    folder = tmp_path_factory.mktemp("maps")
    for name in ("a", "b"):
        write_volume(folder / f"{name}_dseg.nii.gz", numbers, small_head.affine)
    return folder


@pytest.mark.slow
def test_c16_one_device_then_two_then_one_take_the_same_batches(tmp_path, tiny_dataset, settings, on_devices):
    def train(run, count, epochs):
        return on_devices(count, tiny_dataset, run, settings, "--training.epochs", epochs).stderr

    assert "statistically" not in train(tmp_path / "run", 1, 1)
    assert "resumed on other devices or another number of threads (devices was 1, is 2)" in train(
        tmp_path / "run", 2, 2
    )
    assert "devices was 2, is 1" in train(tmp_path / "run", 1, 3)
    train(tmp_path / "one", 1, 3)
    for found, wanted in zip(steps(tmp_path / "run"), steps(tmp_path / "one"), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


WAYS = {
    "loader workers": ("--training.workers", 1),
    "simulated pairs": (
        *("--simulated.share", 0.5, "--simulated.pool", 2, "--prepare.spacing-mm", 6),
        "--simulated.labels",
    ),
    "bfloat16": ("--training.precision", "bfloat16"),
    "a chain with folds": ("--context.stages", 2, "--context.folds", 2),
    "a model to start from": ("--from",),
}


NO_BFLOAT16 = pytest.mark.skipif(
    "bfloat16" not in available(torch.device("cpu")), reason="the processor has no bfloat16"
)


@pytest.mark.slow
@pytest.mark.parametrize("way", [pytest.param(way, marks=NO_BFLOAT16 if way == "bfloat16" else ()) for way in WAYS])
def test_c16_two_devices_take_the_steps_of_one_in_every_way_to_train(
    tmp_path, tiny_dataset, tiny_run, settings, label_maps, on_devices, way
):
    """The first step agrees to rounding. Then Adam makes whole steps of it where a gradient is all but zero. The second
    stage of a chain sees what has become of the first, and its adversary makes more of that: there the L1 counts."""
    last = {"a model to start from": [tiny_run], "simulated pairs": [label_maps]}.get(way, [])
    words = [*WAYS[way], *last, "--training.epochs", 1]
    for count in (1, 2):
        on_devices(count, tiny_dataset, tmp_path / f"{count}", settings, *words)
    logs = sorted(path.relative_to(tmp_path / "1").parent for path in (tmp_path / "1").rglob("log.jsonl"))
    assert len(logs) == (4 if way == "a chain with folds" else 1)
    is_rough = way == "bfloat16"
    for folder in logs:
        one, two = steps(tmp_path / "1" / folder), steps(tmp_path / "2" / folder)
        assert len(one) == len(two) == 3
        for number, (found, wanted) in enumerate(zip(two, one, strict=True)):
            if folder.name == "stage-2":
                assert found["l1"] == pytest.approx(wanted["l1"], rel=1e-2)
            else:
                rel = 1e-2 if is_rough else 1e-5 if number == 0 else 2e-3
                assert found == pytest.approx(wanted, rel=rel), folder


def test_c16_the_ranks_cut_the_slots_of_one_batch(tiny_run, tiny_settings):
    folders = sorted((tiny_run / "prepared").iterdir())[:2]
    cases = [Case(folder.name, folder.name, folder) for folder in folders]
    training = tiny_settings.training.model_copy(update={"batch": 5})
    augmentation = tiny_settings.augmentation.model_copy(update={"shift": 0.5, "flip": 0.5, "noise": 0.1})
    whole, part = (PatchBatches(cases, normalization(cases), training, augmentation=augmentation) for _ in range(2))
    for step in (0, 7):
        parts = []
        for part.slots in (range(0, 2), range(2, 5)):
            parts.append(part(step))
        for one, both in zip(whole(step), zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(both))


@pytest.mark.slow
def test_c15_torchrun_trains_too_and_shows_the_message_of_the_first_that_failed(tmp_path, tiny_dataset, settings):
    words = ("train", tiny_dataset, "-o", tmp_path / "run", "-p", "demo", "--settings", settings)
    done = tool.torchrun(*words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    refused = tool.torchrun(*words, "--loss.l1", 3)
    assert refused.returncode == 1
    assert "the folder holds a run with other settings" in refused.stderr
