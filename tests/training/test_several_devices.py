"""Several processes that take a step together, against one; and a step in parts, against one in one piece."""

import os
import subprocess
import sys
from pathlib import Path

import devices
import pytest
import steps_on_ranks
import torch
from torch import nn

from unscanned.errors import DatasetError, Interrupted, ResourceError, SettingsError
from unscanned.experiment import reproduce
from unscanned.losses import GeneratorLoss
from unscanned.models import generators
from unscanned.settings import resolve
from unscanned.training.adversary import Adversary
from unscanned.training.run import check_settings, train
from unscanned.training.step import Step


@pytest.fixture(scope="module")
def alone():
    return steps_on_ranks.take_all()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "taken.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(devices.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, steps_on_ranks.__file__, str(out)], env=environment, check=True, timeout=280)
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in steps_on_ranks.CASES if "parts" not in name])
def test_two_processes_take_the_step_of_one(alone, together, name):
    assert len(set(together[name]["digests"])) == 1
    found = devices.differences(alone[name], together[name])
    assert found["losses"] < 1e-12
    assert found["gradients"] < 1e-9
    assert found["weights"] < 1e-7


@pytest.mark.slow
def test_two_processes_take_the_parts_of_a_step_too(together):
    name = "the small networks in parts"
    losses = together[name]["losses"]
    assert all(torch.isfinite(torch.tensor([*step.values()])).all() for step in losses)
    assert losses[1]["l1"] < losses[0]["l1"]


class Judge(nn.Module):
    """A discriminator without batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(2, 4, 3), nn.LeakyReLU(0.2), nn.Conv3d(4, 1, 3))

    def forward(self, source, target):
        return self.layers(torch.cat([source, target], 1)).mean((2, 3, 4))


def without_norm(network):
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, nn.Identity())
    return network


def one_step(parts, *, order="discriminator_first", normalized=False):
    """Take a step of five patches in float64; return the losses, and gradients and buffers by name."""
    torch.manual_seed(0)
    generator, judge = generators.build("small", convolution="plain").double(), Judge().double()
    generator = generator if normalized else without_norm(generator)
    adversary = Adversary(judge, torch.optim.Adam(judge.parameters(), 1e-2), penalty=10.0, parts=parts)
    loss = GeneratorLoss({"l1": 1.0, "gdl": 1.0, "ssim": 1.0}, "sum", mean=0.3, std=0.2)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    take_step = Step(
        generator, optimizer, loss, adversary, adversarial=0.5, order=order, clip_norm=1.0, outside=0.1, parts=parts
    )
    source, target = torch.randn(2, 5, 1, 16, 16, 16, dtype=torch.float64)
    losses = take_step(source, target, target > -1)
    tensors = {f"{n}/{k}": p.grad for n, m in take_step.networks.items() for k, p in m.named_parameters()}
    return losses, tensors | dict(generator.named_buffers())


@pytest.mark.parametrize("order", ["discriminator_first", "generator_first"])
@pytest.mark.parametrize("parts", [2, 5])
def test_a_step_in_parts_equals_one_in_one_piece_where_no_batch_norm_sees_the_batch(order, parts):
    (losses, tensors), (in_parts, tensors_of_parts) = one_step(1, order=order), one_step(parts, order=order)
    assert in_parts == pytest.approx(losses, rel=1e-12)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensors_of_parts[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_step_in_parts_moves_running_statistics_once_for_each_part():
    _, tensors = one_step(3, normalized=True)
    assert int(tensors["norms.0.num_batches_tracked"]) == 3


def settings(**training):
    return resolve("demo", overrides={"training": {"device": "cpu", **training}})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"devices": 8}, r"training.batch: fewer patches .* found 7 for 8 devices .* expected at least 8"),
        ({"accumulate": 8}, "found 7 for 1 device and training.accumulate = 8, expected at least 8"),
        ({"devices": 2, "accumulate": 4}, "expected at least 8"),
    ],
)
def test_more_parts_than_patches_are_refused(training, message):
    with pytest.raises(SettingsError, match=message):
        check_settings(settings(**training))


def test_python_alone_starts_no_devices_and_says_what_does(tmp_path):
    refused = pytest.raises(SettingsError, match=r"training\.devices: .* found 2, expected 1\. .*torchrun")
    with refused:
        train(tmp_path, tmp_path / "run", settings(devices=2))
    with refused:
        reproduce(tmp_path, tmp_path / "run", arms=("resgan",), overrides={"training": {"devices": 2}})
    assert not (tmp_path / "run").exists()


def test_torchrun_with_another_number_of_processes_is_refused(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"another number of processes; found 2, expected 3"):
        check_settings(settings(devices=2))
    assert check_settings(settings()).type == "cpu"


def test_gpus_that_are_not_there_and_one_that_is_named_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ResourceError, match="found 2 CUDA devices, expected 4"):
        check_settings(settings(device="auto", devices=4))
    with pytest.raises(SettingsError, match="one GPU is named for several processes; found cuda:1"):
        check_settings(settings(device="cuda:1", devices=2))


@pytest.mark.parametrize("error", [DatasetError("gone", where="sub-01", found="nothing"), Interrupted("stopped")])
def test_an_error_is_the_same_in_another_process(error):
    import pickle

    error.exit_code = 143
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.parts, again.exit_code) == (type(error), str(error), error.parts, 143)
