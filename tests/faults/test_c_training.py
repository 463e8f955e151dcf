"""Section C of the table of faults: training. Each test causes the real fault and is named by its row."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tool
import torch
from peak_memory import MEASURABLE, WHERE, peak_growth_mib
from storm.storm_training import storm
from torch import nn

import unscanned
from unscanned.cli import main
from unscanned.errors import (
    BusyError,
    CheckpointError,
    DatasetError,
    Interrupted,
    ResourceError,
    TrainingError,
)
from unscanned.files import lock, read_json, sha256, write_json
from unscanned.losses import GeneratorLoss
from unscanned.machine.device import choose_device
from unscanned.machine.provenance import utc_now
from unscanned.settings import Training
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.training.adversary import Adversary
from unscanned.training.batches import PatchBatches
from unscanned.training.checkpoint import load_checkpoint, save_checkpoint
from unscanned.training.feed import Feed
from unscanned.training.health import FATAL_AFTER, FATAL_STEPS, count_signs, output_signs, sign_warnings
from unscanned.training.log import RunLog, read_log
from unscanned.training.loop import train_stage
from unscanned.training.prepare import Case, normalization
from unscanned.training.run import train
from unscanned.training.step import Step

PATCH = 8
RARELY = {"checkpoint_minutes": 5.0}  # so that what is saved within an epoch was saved for the fault


class Judge(nn.Module):
    """A discriminator of three numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(2, 1, 3)

    def forward(self, source, target):
        return self.layer(torch.cat([source, target], 1)).mean((2, 3, 4))


def networks(generator=None):
    torch.manual_seed(0)
    generator = generator or nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2), nn.Conv3d(2, 1, 1))
    return generator, Judge()


@pytest.fixture
def cases(tiny_run, tmp_path):
    """The prepared scans of two subjects, in a copy that a test may damage."""
    folder = shutil.copytree(tiny_run / "prepared", tmp_path / "prepared")
    return [Case(case.name, case.name, case) for case in sorted(folder.iterdir())[:2]]


@pytest.fixture
def batches(cases):
    return PatchBatches(cases, normalization(cases), Training(patch=PATCH, batch=2))


def train_networks(folder, batches, generator=None, **options):
    """Train two networks of a few weights for three epochs of four steps, and return the generator."""
    step = step_of(*networks(generator), adversarial=options.pop("adversarial", 0.5))
    chosen = {"epochs": 3, "steps_per_epoch": 4, "checkpoint_minutes": 1e-9}
    settings = Training(**{name: options.pop(name, value) for name, value in {**chosen, "workers": 0}.items()})
    validate = options.pop("validate", lambda network: {})
    train_stage(folder, step, batches, validate, settings, **options)
    return step.generator


def step_of(generator, discriminator, adversarial=0.5):
    """Return a step of both networks with Adam."""
    adversary = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), 1e-3, (0.5, 0.999), fused=True))
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3, (0.5, 0.999), fused=True)
    if adversarial == 0:
        adversary = None
    return Step(generator, optimizer, GeneratorLoss({"l1": 1.0, "gdl": 1.0}), adversary, adversarial=adversarial)


def stop_after(step):
    """Return a should_stop that says so after so many steps."""
    counted = iter(range(1, 10**6))
    return lambda: next(counted) >= step


def weights(folder):
    """Return the bytes of every checkpoint by its name."""
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").glob("*.safetensors")}


def course(folder):
    kept = ("event", "step", "d_loss", "g_loss", "l1", "gdl", "adversarial")
    return [{key: event.get(key) for key in kept} for event in read_log(folder / "log.jsonl")]


def in_a_process(work):
    """Run work in a forked process and return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(getattr(error, "exit_code", 99))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fill(folder, leave):
    """Fill a disk but for so many bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "filling").write_bytes(bytes(max(0, free - leave)))


@pytest.mark.slow
def test_c01_killed_at_random_moments_every_resume_equals_the_uninterrupted_run(tmp_path):
    outcome = storm(tmp_path, 3, seed=5)
    assert outcome.kills >= 3
    assert outcome.resumes >= 3
    assert outcome.checkpoints > 0
    assert (outcome.unreadable, outcome.different, outcome.wrong_runs) == (0, 0, 0)


def test_c01_another_number_of_workers_on_resume_changes_nothing(tmp_path, batches):
    train_networks(tmp_path / "whole", batches)
    with pytest.raises(Interrupted):
        train_networks(tmp_path / "parts", batches, should_stop=stop_after(6))
    train_networks(tmp_path / "parts", batches, workers=2)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert course(tmp_path / "parts") == course(tmp_path / "whole")


def test_c02_what_a_kill_during_a_write_leaves_is_passed_over(tmp_path, batches):
    train_networks(tmp_path / "whole", batches)
    with pytest.raises(Interrupted):
        train_networks(tmp_path / "cut", batches, should_stop=stop_after(6))
    folder = tmp_path / "cut" / "checkpoints"
    (folder / "step-00000007.safetensors").write_bytes(b"half of it")
    (folder / ".partial-x.json").write_text('{"step": 7')
    train_networks(tmp_path / "cut", batches)
    assert (
        weights(tmp_path / "cut")["step-00000012.safetensors"]
        == weights(tmp_path / "whole")["step-00000012.safetensors"]
    )


def test_c03_a_disk_full_at_a_checkpoint_is_exit_7_with_the_bytes_and_the_last_one_loads(small_disk, batches):
    heavy = nn.Sequential(nn.Conv3d(1, 64, 3, padding=1), nn.Conv3d(64, 64, 3, padding=1), nn.Conv3d(64, 1, 1))
    with pytest.raises(ResourceError, match=r"the disk is full; found [\d,]+ bytes free, expected [\d,]+") as refusal:
        train_networks(small_disk / "run", batches, generator=heavy)
    assert refusal.value.exit_code == 7
    kept = load_checkpoint(small_disk / "run" / "checkpoints", {})
    assert kept is not None
    assert kept.tensors
    assert not list(small_disk.rglob(".partial-*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard has its own thread
def test_c03_a_log_that_cannot_be_written_ends_no_training(small_disk):
    fill(small_disk, 0)
    log = RunLog(small_disk)
    for step in range(200):
        log.write("step", step=step, l1=1.0, text="x" * 200)
    log.close()
    (small_disk / "filling").unlink()
    assert len(read_log(small_disk / "log.jsonl")) < 200


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_c04_a_pickle_is_refused_and_never_run(tmp_path, batches):
    trace = tmp_path / "pwned.txt"
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(CheckpointError, match=r"last\.pt: pickled checkpoints are not read.*\. Remove it") as refusal:
        train_networks(tmp_path / "run", batches)
    assert refusal.value.exit_code == 5
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(CheckpointError, match=r"model\.pt.*Give the folder"):
        load_model(tmp_path / "model.pt")
    assert not trace.exists()


HOSTILE = {
    "a header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "a header of a gigabyte": struct.pack("<Q", 2**30) + b" " * 100,
    "a header that is not JSON": struct.pack("<Q", 4) + b"\xff\xfe{}",
    "a tensor larger than the file": b"",
    "tensors that overlap": b"",
    "no header": b"",
}


def hostile(name):
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    headers = {
        "a tensor larger than the file": {"x": {**tensor, "shape": [2**40], "data_offsets": [0, 2**42]}},
        "tensors that overlap": {"x": tensor, "y": {**tensor, "data_offsets": [8, 24]}},
    }
    if name not in headers:
        return HOSTILE[name]
    header = json.dumps(headers[name]).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
@pytest.mark.parametrize("name", HOSTILE)
def test_c04_a_safetensors_file_that_lies_is_refused_within_bounds(tmp_path, name):
    path = tmp_path / "step-00000001.safetensors"
    path.write_bytes(hostile(name))
    write_json(path.with_suffix(".json"), {"step": 1, "sha256": sha256(path), "identity": {}})

    def load():
        with pytest.raises(CheckpointError, match="step-00000001 passed over"):
            load_checkpoint(tmp_path, {})

    assert peak_growth_mib(load) < 100


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_c05_one_flipped_bit_falls_back_to_the_previous_checkpoint_with_a_warning(tmp_path, batches):
    train_networks(tmp_path / "whole", batches)
    with pytest.raises(Interrupted):
        train_networks(tmp_path / "flipped", batches, should_stop=stop_after(6))
    flip(tmp_path / "flipped" / "checkpoints" / "step-00000006.safetensors")
    with pytest.warns(UserWarning, match="step-00000006 passed over: its hash differs"):
        train_networks(tmp_path / "flipped", batches)
    assert weights(tmp_path / "flipped") == weights(tmp_path / "whole")
    warnings = [event for event in read_log(tmp_path / "flipped" / "log.jsonl") if event["event"] == "warning"]
    assert "passed over" in warnings[0]["message"]


@pytest.mark.parametrize("change", [(b'"step": 6', b'"step": 7'), (b'"seconds": ', b'"seconds": 1')])
def test_c05_a_changed_manifest_falls_back_to_the_previous_checkpoint(tmp_path, batches, change):
    train_networks(tmp_path / "whole", batches)
    with pytest.raises(Interrupted):
        train_networks(tmp_path / "changed", batches, should_stop=stop_after(6))
    manifest = tmp_path / "changed" / "checkpoints" / "step-00000006.json"
    assert manifest.read_bytes().count(change[0]) == 1
    manifest.write_bytes(manifest.read_bytes().replace(*change))
    with pytest.warns(UserWarning, match="step-00000006 passed over: it was changed since it was written"):
        train_networks(tmp_path / "changed", batches)
    assert weights(tmp_path / "changed") == weights(tmp_path / "whole")


def test_c05_where_no_checkpoint_is_whole_training_says_so_and_exits_5(tmp_path, batches):
    with pytest.raises(Interrupted):
        train_networks(tmp_path, batches, should_stop=stop_after(6))
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        flip(path)
    with pytest.raises(CheckpointError, match="no checkpoint is readable") as refusal:
        train_networks(tmp_path, batches)
    assert refusal.value.exit_code == 5


def test_c05_a_flipped_bit_in_a_model_is_refused(tmp_path, tiny_run):
    model = shutil.copytree(tiny_run / "model", tmp_path / "model")
    flip(model / "model.safetensors")
    with pytest.raises(CheckpointError, match="the weights are damaged"):
        load_model(model)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--generator.name", "nie", "generator.name = 'small', now 'nie'"),
        ("--training.learning-rate", "0.5", "training.learning_rate = 0.001, now 0.5"),
        ("--loss.gdl", "0", "loss.gdl = 1.0, now 0.0"),
    ],
)
def test_c06_a_folder_of_other_settings_is_refused_with_the_difference(
    tmp_path, capsys, tiny_run, tiny_dataset, option, value, message
):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run / "settings.json", run)
    file = tiny_run / "settings.toml"
    code = main(["train", str(tiny_dataset), "-o", str(run), "-p", "demo", "--settings", str(file), option, value])
    assert code == 5
    assert message in capsys.readouterr().err


def test_c06_a_checkpoint_of_other_scans_is_refused_with_the_case(tmp_path):
    save_checkpoint(tmp_path, 1, {}, {}, identity={"scans of": {"sub-01": "aa bb"}})
    with pytest.raises(CheckpointError, match=r"scans of\.sub-01 = 'aa bb', now 'aa cc'"):
        load_checkpoint(tmp_path, {"scans of": {"sub-01": "aa cc"}})


def compete(folder, go, reports, end):
    """Wait until the pipe `go` is closed, try to lock, report how it went, and hold until `end` is closed."""
    os.read(go, 1)
    try:
        with lock(folder):
            os.write(reports, b"+")
            os.read(end, 1)
    except BusyError:
        os.write(reports, b"-")
    return 0


def test_c07_of_two_runs_that_start_at_once_one_has_the_folder_in_fifty_of_fifty_tries(tmp_path):
    for _ in range(50):
        go, reports, end = os.pipe(), os.pipe(), os.pipe()
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                os.close(go[1])
                os.close(end[1])
                os._exit(compete(tmp_path, go[0], reports[1], end[0]))
            children.append(child)
        os.close(go[1])
        outcomes = os.read(reports[0], 1) + os.read(reports[0], 1)
        os.close(end[1])
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        for pipe_end in (go[0], *reports, end[0]):
            os.close(pipe_end)
        assert sorted(outcomes) == sorted(b"+-")


def test_c07_the_lock_of_a_killed_run_is_free_even_while_its_children_live(tmp_path):
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            with lock(tmp_path):
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
                os.write(writing, b"x")
                time.sleep(30)
        finally:
            os._exit(1)  # else this copy would go on with the tests
    os.read(reading, 1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")


def test_c07_the_command_line_exits_8_on_a_folder_in_use(tmp_path, capsys, tiny_dataset):
    holder = os.fork()
    if holder == 0:
        try:
            with lock(tmp_path):
                (tmp_path / "held").touch()
                time.sleep(60)
        finally:
            os._exit(1)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    code = main(["train", str(tiny_dataset), "-o", str(tmp_path), "-p", "demo"])
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert code == 8
    assert f"in use by another run; found process {holder}" in capsys.readouterr().err


def start_training(tiny_run, tiny_dataset, run, *options):
    """Train from the command line, and return the process once it has taken a step."""
    arguments = ["train", tiny_dataset, "-o", run, "-p", "demo", "--settings", tiny_run / "settings.toml"]
    process = tool.start(*arguments, "--training.epochs", 1000, *options)
    while last_step(run) == 0:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def last_step(run):
    return max((event["step"] for event in read_log(run / "log.jsonl") if event["event"] == "step"), default=0)


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_c08_a_signal_ends_training_within_seconds_and_the_next_call_goes_on(
    tmp_path, tiny_run, tiny_dataset, number, code
):
    run = tmp_path / "run"
    with start_training(tiny_run, tiny_dataset, run) as process:
        process.send_signal(number)
        began = time.monotonic()
        _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - began < 30
    saved = sorted((run / "checkpoints").glob("step-*.json"))[-1]
    assert sha256(saved.with_suffix(".safetensors")) == read_json(saved)["sha256"]
    assert read_json(saved)["step"] == last_step(run)
    assert "saved" in message
    assert "Run it again to go on" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_c08_the_second_signal_ends_training_before_the_step_ends(tmp_path, tiny_run, tiny_dataset, number, code):
    run = tmp_path / "run"
    with start_training(tiny_run, tiny_dataset, run, "--training.batch", 128) as process:
        time.sleep(0.1)  # into the next step, which takes seconds
        steps = last_step(run)
        process.send_signal(number)
        while "once more to stop at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopped at once" in message
    assert "Traceback" not in message
    assert last_step(run) == steps


def test_c08_a_signal_during_validation_saves_before_it_and_validates_on_resume(tmp_path, batches):
    def interrupted(network):
        raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        train_networks(tmp_path / "cut", batches, validate=interrupted)
    seen = []
    scores = {"psnr": 20.0}
    train_networks(tmp_path / "cut", batches, validate=lambda network: seen.append(1) or scores)
    train_networks(tmp_path / "whole", batches, validate=lambda network: scores)
    assert len(seen) == 3
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_c09_a_device_that_is_not_there_is_exit_7_and_auto_takes_the_cpu(tmp_path, capsys, monkeypatch, tiny_run):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code = main(["synthesize", str(tiny_run / "model"), "scan.nii.gz", "-o", str(tmp_path), "--device", "cuda"])
    assert code == 7
    told = capsys.readouterr().err
    assert "the device is not there; found 0 CUDA devices, expected cuda. Choose the device cpu" in told
    assert "--training" not in told  # synthesize has no such option
    assert choose_device("auto").type == "cpu"
    assert main(["synthesize", str(tiny_run / "model"), str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path)]) == 3
    assert "PyTorch sees no CUDA device, so the CPU is used" in capsys.readouterr().err
    assert main(["synthesize", str(tiny_run), str(tmp_path / "scan.nii"), "-o", str(tmp_path), "--device", "cpu"]) == 3
    assert "CUDA" not in capsys.readouterr().err


def limit_memory(mib):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, resource.RLIM_INFINITY))


def train_wide(folder, cases, **options):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv3d(1, 32, 1), nn.LeakyReLU(), nn.Conv3d(32, 1, 1))
    batches = PatchBatches(cases, normalization(cases), Training(patch=16, batch=256))
    train_networks(folder, batches, generator=wide, adversarial=0.0, epochs=1, **options)


def train_until_memory_is_short(folder, cases):
    torch.set_num_threads(1)
    steps = itertools.count(1)
    try:
        train_wide(folder, cases, should_stop=lambda: next(steps) == 2 and limit_memory(100))
    except ResourceError as error:
        (folder / "message").write_text(str(error))
        sys.exit(error.exit_code)


def in_a_new_process(work, *arguments):
    """Run work in a process that has freed nothing yet: a fork has what this one has freed, beyond any limit."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_c10_training_out_of_memory_names_a_batch_that_fits_and_goes_on_from_its_checkpoint(tmp_path, cases):
    assert in_a_new_process(train_until_memory_is_short, tmp_path / "short", cases) == 7
    message = (tmp_path / "short" / "message").read_text()
    assert "memory does not hold a training step; found training.batch = 256" in message
    fits = int(message.split("expected training.batch = ")[1].split(",")[0])
    assert 0 < fits < 256
    assert load_checkpoint(tmp_path / "short" / "checkpoints", {}).step == 2
    train_wide(tmp_path / "short", cases)
    train_wide(tmp_path / "whole", cases)
    assert weights(tmp_path / "short") == weights(tmp_path / "whole")


def map_with_little_memory(volume, network, folder):
    limit_memory(150)
    notes = []
    made = reconstruct(volume, network, patch=16, stride=3, batch=256, note=notes.append)
    np.save(folder / "made.npy", made)
    (folder / "notes").write_text("\n".join(notes))


def test_c10_synthesis_out_of_memory_takes_fewer_patches_says_so_and_gives_the_same(tmp_path):
    volume = np.random.default_rng(0).standard_normal((1, 32, 32, 32)).astype(np.float32)
    network = nn.Sequential(nn.Conv3d(1, 32, 1), nn.LeakyReLU(), nn.Conv3d(32, 1, 1))
    assert in_a_new_process(map_with_little_memory, volume, network, tmp_path) == 0
    assert "memory did not hold 256 patches at a time on cpu; 128 were taken" in (tmp_path / "notes").read_text()
    expected = reconstruct(volume, network, patch=16, stride=3)
    np.testing.assert_allclose(np.load(tmp_path / "made.npy"), expected, atol=1e-5)


def test_c11_another_number_of_threads_on_resume_is_told(tmp_path, batches):
    with pytest.raises(Interrupted):
        train_networks(tmp_path, batches, should_stop=stop_after(6))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=rf"threads was {threads}, is {threads + 1}\).*statistically, not bit"):
            train_networks(tmp_path, batches)
    finally:
        torch.set_num_threads(threads)


def test_c11_two_runs_of_the_same_settings_are_equal(tmp_path, batches):
    train_networks(tmp_path / "one", batches)
    train_networks(tmp_path / "two", batches)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def damage(case):
    target = np.load(case.folder / "target.npy")
    target[4, 4, 4] = np.nan
    np.save(case.folder / "target.npy", target)


class Once(PatchBatches):
    """Batches of which one, the first time that it is asked for, is not finite."""

    def __init__(self, batches, bad):
        vars(self).update(vars(batches))
        self.bad, self.done = bad, False

    def __call__(self, step):
        source, target = super().__call__(step)
        if step == self.bad and not self.done:
            self.done = True
            source[0, 0, 0, 0, 0] = float("inf")
        return source, target


def test_c12_a_nan_voxel_is_named_after_one_roll_back_and_what_is_kept_goes_on(tmp_path, cases):
    options = {"epochs": 6, "steps_per_epoch": 2, **RARELY}
    batches = PatchBatches(cases, normalization(cases), Training(patch=PATCH, batch=8, seed=7))
    whole = cases[1].target.copy()
    damage(cases[1])
    pattern = rf"step 5, .*{cases[1].name} at .*\(0, 0, 0\).*discriminator's loss or gradient is not finite"
    with pytest.warns(UserWarning, match="went back to step 2"), pytest.raises(TrainingError, match=pattern) as refusal:
        train_networks(tmp_path / "run", batches, **options)
    assert refusal.value.exit_code == 6
    for folder in ("checkpoints", "best"):
        kept = load_checkpoint(tmp_path / "run" / folder, {})
        assert kept.step == 4
        assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())

    np.save(cases[1].folder / "target.npy", whole)
    train_networks(tmp_path / "run", batches, **options)
    with pytest.warns(UserWarning, match="went back to step 2"):
        train_networks(tmp_path / "passing", Once(batches, 3), **options)
    assert weights(tmp_path / "run") == weights(tmp_path / "passing")


def test_c12_after_a_passing_fault_training_goes_on_from_the_epoch_in_another_order(tmp_path, cases):
    batches = Once(PatchBatches(cases, normalization(cases), Training(patch=PATCH, batch=2)), 6)
    first = batches.chosen(6).tolist()
    with pytest.warns(UserWarning, match="went back to step 4 and another order"):
        generator = train_networks(tmp_path / "run", batches)
    assert batches.chosen(6).tolist() != first
    assert all(torch.isfinite(tensor).all() for tensor in generator.state_dict().values())
    assert load_checkpoint(tmp_path / "run" / "checkpoints", {}).facts.record["rolled_back_from"] == 6
    steps = [event["step"] for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "step"]
    assert steps == list(range(1, 13))


def test_c12_a_resume_after_a_roll_back_equals_the_run_that_was_not_interrupted(tmp_path, cases):
    def fresh():
        return Once(PatchBatches(cases, normalization(cases), Training(patch=PATCH, batch=2)), 6)

    with pytest.warns(UserWarning, match="went back"):
        train_networks(tmp_path / "whole", fresh())
    interrupted = fresh()
    with pytest.warns(UserWarning, match="went back"), pytest.raises(Interrupted):
        train_networks(tmp_path / "cut", interrupted, should_stop=stop_after(8))
    train_networks(tmp_path / "cut", interrupted, workers=0)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_c12_an_infinite_weight_is_stopped_before_the_next_step(tmp_path, batches, which):
    generator, discriminator = networks()
    network = generator if which == "generator" else discriminator

    def spoil():
        with torch.no_grad():
            next(network.parameters()).fill_(float("inf"))
        return False

    step = step_of(generator, discriminator)
    with pytest.warns(UserWarning, match="went back"), pytest.raises(TrainingError, match="not finite"):
        train_stage(tmp_path, step, batches, lambda n: {}, Training(epochs=2), should_stop=spoil)


def test_c12_the_best_epoch_of_a_failed_training_is_written_as_a_model(tmp_path, tiny_dataset, tiny_settings):
    run = tmp_path / "run"

    def spoil():
        if len(read_log(run / "log.jsonl")) == 5:  # three steps, a validation and a step
            for subject in read_json(run / "split.json")["train"]:
                path = run / "prepared" / f"sub-{subject}" / "target.npy"
                np.save(path, np.full_like(np.load(path), np.nan))
        return False

    wanted = tiny_settings.change(training={"epochs": 60})
    pattern = r"not finite.*The best epoch so far is the model"
    with pytest.warns(UserWarning, match="went back"), pytest.raises(TrainingError, match=pattern):
        train(tiny_dataset, run, wanted, should_stop=spoil)
    model = load_model(run)
    assert model.provenance["stages"][0]["best"]["epoch"] >= 1
    assert "not finite" in model.provenance["stages"][0]["ended"]


def test_c12_a_prepared_volume_that_is_not_finite_is_refused_by_its_name(cases):
    damage(cases[1])
    with pytest.raises(DatasetError, match=f"{cases[1].name}: a prepared volume holds numbers that are not finite"):
        normalization(cases)


def test_c13_outputs_that_have_collapsed_show_it_and_good_ones_do_not():
    random = np.random.default_rng(0)
    target = random.standard_normal((32, 32, 32)).astype(np.float32)
    head = np.ones(target.shape, bool)
    good = output_signs(target + 0.1 * random.standard_normal(target.shape), target, head, PATCH)
    assert count_signs(good, {}) == {}
    constant = output_signs(np.full_like(target, 0.5), target, head, PATCH)
    assert count_signs(constant, {}) == {"std_ratio": 1, "variety": 1, "mae_ratio": 1}
    tile = np.tile(target[:8, :8, :8], (4, 4, 4))
    assert "variety" in count_signs(output_signs(tile, target, head, PATCH), {})
    inverted = output_signs(-target, target, head, PATCH)
    assert count_signs(inverted, {"mae_ratio": 2}) == {"mae_ratio": 3}
    assert sign_warnings(inverted, {"mae_ratio": 3}) == [
        f"synthetic volumes are further from the target than its mean: mae_ratio {inverted['mae_ratio']:.3f}, "
        "3 validations in a row"
    ]


class Constant(nn.Module):
    """A generator that has collapsed."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, source):
        return self.level + 0 * source


def test_c13_a_generator_that_makes_a_constant_ends_with_exit_6_and_its_best_epoch(tmp_path, cases, batches):
    target = batches.normalization.target.standardize(cases[0].target)

    def validate(network):
        made = np.full_like(target, float(network.level.detach()))
        return {"psnr": -float(len(made)), **output_signs(made, target, np.asarray(cases[0].head), PATCH)}

    epoch = FATAL_STEPS // FATAL_AFTER + 1
    with (
        pytest.warns(UserWarning, match="next to no contrast"),
        pytest.raises(TrainingError, match="has collapsed") as refusal,
    ):
        train_networks(
            tmp_path,
            batches,
            generator=Constant(),
            validate=validate,
            epochs=20,
            steps_per_epoch=epoch,
            checkpoint_minutes=5.0,
            adversarial=0.0,
        )
    assert refusal.value.exit_code == 6
    assert load_checkpoint(tmp_path / "best", {}) is not None
    validations = [event for event in read_log(tmp_path / "log.jsonl") if event["event"] == "validation"]
    assert len(validations) == FATAL_AFTER


@pytest.mark.parametrize(
    ("sign", "further", "words"),
    [
        ("std_ratio", 0, "its adversary collapsed by its end"),
        ("d_accuracy", 1, "goes on without its adversary"),
    ],
)
def test_c13_a_training_whose_adversary_collapses_goes_on_without_it_if_it_may(tmp_path, batches, sign, further, words):
    def scores(network):
        collapsed = {"std_ratio": 0.01, "d_accuracy": 1.0}[sign]
        return {"psnr": 1.0, sign: collapsed if step.adversary.takes_part else 0.7}

    step = dataclasses.replace(step_of(*networks()), goes_on=True)
    epoch = FATAL_STEPS // FATAL_AFTER + 1
    settings = Training(epochs=FATAL_AFTER + further, steps_per_epoch=epoch)
    with pytest.warns(UserWarning, match=rf"{words}: .*{sign}"):
        train_stage(tmp_path, step, batches, scores, settings)
    steps = [event for event in read_log(tmp_path / "log.jsonl") if event["event"] == "step"]
    assert ["d_loss" in event for event in steps] == [True] * FATAL_AFTER * epoch + [False] * further * epoch
    again = dataclasses.replace(step_of(*networks()), goes_on=True)
    longer = settings.model_copy(update={"epochs": FATAL_AFTER + 2})
    train_stage(tmp_path, again, batches, lambda network: {"psnr": 1.0}, longer)
    assert "d_loss" not in read_log(tmp_path / "log.jsonl")[-2]


def last_weights(folder, batches, make_step, stops, **options):
    """Train with interruptions after so many steps each, every resume with fresh networks; return the last state."""
    for steps in stops:
        with pytest.raises(Interrupted):
            train_stage(folder, make_step(), batches, should_stop=stop_after(steps), **options)
    train_stage(folder, make_step(), batches, **options)
    return max(weights(folder).items())


@pytest.mark.filterwarnings("ignore:.*goes on without its adversary", "ignore:.*always right")
def test_c13_a_run_interrupted_around_the_collapse_of_its_adversary_equals_the_other(tmp_path, batches):
    epoch = FATAL_STEPS // FATAL_AFTER + 1
    at = FATAL_AFTER * epoch
    settings = Training(epochs=FATAL_AFTER + 1, steps_per_epoch=epoch)
    steps = []

    def fresh():
        steps.append(dataclasses.replace(step_of(*networks()), goes_on=True))
        return steps[-1]

    def scores(network):
        return {"psnr": 1.0, "d_accuracy": 1.0 if steps[-1].adversary.takes_part else 0.7}

    found = {}
    for name, stops in {"whole": (), "cut": (at - 1, 1, 2)}.items():
        found[name] = last_weights(tmp_path / name, batches, fresh, stops, validate=scores, settings=settings)
        assert load_checkpoint(tmp_path / name / "checkpoints", {}).facts.record["adversary_left"] == at
    assert found["cut"] == found["whole"]
    assert course(tmp_path / "cut") == course(tmp_path / "whole")


class Touchy(Judge):
    """A discriminator whose logits are infinite wherever a patch is not dark."""

    def forward(self, source, target):
        bright = target.mean((1, 2, 3, 4))[:, None] > -0.5
        return super().forward(source, target) + torch.where(bright, torch.inf, 0.0)


def touchy(goes_on):
    torch.manual_seed(0)
    step = step_of(networks()[0], Touchy())
    return dataclasses.replace(step, adversarial_after=5, goes_on=goes_on)


def test_c13_an_adversary_that_is_not_finite_again_is_given_up_if_it_may_be(tmp_path, batches):
    settings = Training(epochs=3, steps_per_epoch=4)
    options = {"validate": lambda network: {}, "settings": settings}
    with (
        pytest.warns(UserWarning, match="went back to step 4 and another order"),
        pytest.raises(TrainingError, match="discriminator's loss or gradient is not finite"),
    ):
        train_stage(tmp_path / "ends", touchy(goes_on=False), batches, **options)
    with pytest.warns(UserWarning, match="goes on without its adversary") as told:
        train_stage(tmp_path / "goes on", touchy(goes_on=True), batches, **options)
    words = [str(warning.message) for warning in told]
    assert ["went back to step 4 and another order" in line for line in words][-2:] == [True, False]
    assert "went back to step 4 and goes on without its adversary. step 5" in words[-1]
    events = read_log(tmp_path / "goes on" / "log.jsonl")
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 13))
    assert not any("d_loss" in event for event in events)
    assert load_checkpoint(tmp_path / "goes on" / "checkpoints", {}).facts.record["adversary_left"] == 4


@pytest.mark.filterwarnings("ignore:.*went back to step", "ignore:.*too few to see a collapse")
@pytest.mark.parametrize("stops", [(5,), (6,), (7,), (5, 1, 1, 2)])
def test_c13_a_run_interrupted_while_its_adversary_fails_equals_the_other(tmp_path, cases, stops):
    """After five steps it has not failed, after six it has once, after seven twice."""

    def run(name, stops):
        batches = PatchBatches(cases, normalization(cases), Training(patch=PATCH, batch=2))
        options = {"validate": lambda network: {}, "settings": Training(epochs=3, steps_per_epoch=4)}
        found = last_weights(tmp_path / name, batches, lambda: touchy(goes_on=True), stops, **options)
        return found, course(tmp_path / name), load_checkpoint(tmp_path / name / "checkpoints", {}).facts.record

    (found, steps, record), (wanted, wanted_steps, wanted_record) = run("cut", stops), run("whole", ())
    assert found == wanted
    assert [event for event in steps if event["event"] == "step"] == [
        event for event in wanted_steps if event["event"] == "step"
    ]
    assert (record["adversary_left"], record["rolled_back_from"]) == (4, 5)
    assert (wanted_record["adversary_left"], wanted_record["rolled_back_from"]) == (4, 5)


def test_c13_a_training_without_validation_subjects_says_that_no_collapse_will_be_seen(tmp_path, batches):
    settings, validate = Training(epochs=1, steps_per_epoch=2), lambda network: {}
    with pytest.warns(UserWarning, match=r"split\.validation = 0: a collapse shows on validation subjects alone"):
        train_stage(tmp_path, step_of(*networks()), batches, validate, settings, validates=False)
    longer = settings.model_copy(update={"epochs": 2})
    train_stage(tmp_path, step_of(*networks()), batches, validate, longer, validates=False)
    told = [event for event in read_log(tmp_path / "log.jsonl") if event["event"] == "warning"]
    assert [event["step"] for event in told] == [0]


def test_c13_a_healthy_run_gives_no_warning(tiny_run):
    events = read_log(tiny_run / "log.jsonl")
    assert any(event["event"] == "validation" and "std_ratio" in event for event in events)
    assert not any(event["event"] == "warning" for event in events)


def kill_itself(step):
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return (torch.zeros(1),)


def stop_itself(step):
    if step == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return (torch.zeros(1),)


@pytest.mark.parametrize(
    ("work", "message"), [(kill_itself, "a loader worker was killed"), (stop_itself, "a loader worker hangs")]
)
def test_c14_a_worker_that_is_killed_or_hangs_is_exit_7_in_time(work, message):
    feed = Feed(work, 0, 10, workers=1, timeout_s=2)
    assert [float(next(feed)[0]) for _ in range(3)] == [0, 0, 0]
    began = time.monotonic()
    with pytest.raises(ResourceError, match=message) as refusal:
        next(feed)
    assert refusal.value.exit_code == 7
    assert time.monotonic() - began < 20


class Failing(PatchBatches):
    """Batches of which one, the first time that it is asked for, sends its own process a signal."""

    def __init__(self, batches, bad, number, trace):
        vars(self).update(vars(batches))
        self.bad, self.number, self.trace = bad, number, trace

    def __call__(self, step):
        if step == self.bad and not self.trace.exists():
            self.trace.touch()
            os.kill(os.getpid(), self.number)
        return super().__call__(step)

    def loader(self, first, last, workers=0):
        return super().loader(first, last, workers, timeout_s=2)


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGKILL, "a loader worker was killed"), (signal.SIGSTOP, "a loader worker hangs")],
)
def test_c14_a_worker_lost_while_training_costs_no_step(tmp_path, batches, number, message):
    failing = Failing(batches, 6, number, tmp_path / "failed")
    with pytest.raises(ResourceError, match=rf"step 6, sub-.* at .*: {message}"):
        train_networks(tmp_path / "run", failing, workers=1, **RARELY)
    assert load_checkpoint(tmp_path / "run" / "checkpoints", {}).step == 6
    train_networks(tmp_path / "run", failing, workers=1, **RARELY)
    train_networks(tmp_path / "whole", batches, **RARELY)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 1])
def test_c14_a_scan_that_vanishes_while_training_is_named_and_the_state_is_saved(tmp_path, cases, workers):
    batches = PatchBatches(cases, normalization(cases), Training(patch=PATCH, batch=1, seed=5))
    first = next(step for step in range(12) if batches.chosen(step)[0, 0] == 1)
    assert first % 4 > 0  # an epoch's end saves anyway
    away = (cases[1].folder / "source.npy").rename(tmp_path / "away.npy")
    batches.cases = [Case(case.name, case.subject, case.folder) for case in cases]  # which map their files anew
    with pytest.raises(
        DatasetError, match=rf"step {first}, {cases[1].name} at .*: a batch cannot be cut; found"
    ) as refusal:
        train_networks(tmp_path / "run", batches, workers=workers, **RARELY)
    assert refusal.value.exit_code == 3
    assert "Traceback" not in str(refusal.value)
    assert load_checkpoint(tmp_path / "run" / "checkpoints", {}).step == first
    away.rename(cases[1].folder / "source.npy")
    train_networks(tmp_path / "run", batches, workers=workers, **RARELY)
    train_networks(tmp_path / "whole", batches, **RARELY)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_c16_a_sample_depends_on_its_step_and_slot_alone(cases):
    contrasts = normalization(cases)
    whole = PatchBatches(cases, contrasts, Training(patch=PATCH, batch=8, seed=3))
    half = PatchBatches(cases, contrasts, Training(patch=PATCH, batch=4, seed=3))
    for step in (5, 0, 40):
        slots = np.concatenate([half.chosen(2 * step), half.chosen(2 * step + 1)])
        np.testing.assert_array_equal(whole.chosen(step), slots)


def test_c17_stamps_are_utc_and_durations_never_come_from_the_wall_clock(monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        stamp = utc_now()
        now = time.gmtime()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert stamp.endswith("Z")
    assert stamp[:13] == time.strftime("%Y-%m-%dT%H", now)
    sources = Path(unscanned.__file__).parent.rglob("*.py")
    assert not [path for path in sources if "time.time()" in path.read_text() or ".now()" in path.read_text()]
