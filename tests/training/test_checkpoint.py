import itertools
import signal
from functools import partial

import pytest
import torch
from killed import killed_at
from torch import nn

from unscanned.errors import CheckpointError
from unscanned.models import generators
from unscanned.settings import resolve
from unscanned.training.checkpoint import load_checkpoint, restore, save_checkpoint, state
from unscanned.training.stage import build_step

IDENTITY = {"training": {"batch": 7}, "stage": {"number": 1}}


def learner(seed=0):
    """A network and its optimizer."""
    torch.manual_seed(seed)
    network = generators.build("small")
    return {"generator": network}, {"generator_optimizer": torch.optim.Adam(network.parameters(), 1e-3)}


def learn(modules, optimizers, step):
    torch.manual_seed(100 + step)
    x = torch.randn(2, 1, 8, 8, 8)
    optimizers["generator_optimizer"].zero_grad(set_to_none=True)
    nn.functional.l1_loss(modules["generator"](x), -x).backward()
    optimizers["generator_optimizer"].step()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    whole = learner()
    for step in range(6):
        learn(*whole, step)
        if step == 2:
            save_checkpoint(tmp_path, 3, state(*whole), {"best": None}, identity=IDENTITY)
    checkpoint = load_checkpoint(tmp_path, IDENTITY)
    resumed = learner(seed=1)
    restore(checkpoint.tensors, *resumed)
    for step in range(checkpoint.step, 6):
        learn(*resumed, step)
    assert same(state(*resumed), state(*whole))


def test_what_lies_in_memory_in_another_order_goes_on_bit_for_bit_too(tmp_path):
    """`strong` trains faster with its weights in such an order; a fused optimizer steps through memory as it lies."""

    def steps(numbers, step):
        for number in numbers:
            torch.manual_seed(number)
            x = torch.randn(2, 1, 32, 32, 32)
            step(x, -x)

    settings = resolve("strong", None, {"generator": {"options": {"filters": 4}}})
    whole, resumed = (build_step(settings, 1, torch.device("cpu")) for _ in range(2))
    kernels = [weight for weight in whole.generator.parameters() if weight.dim() == 5 and weight.shape[1] > 1]
    assert not any(kernel.is_contiguous() for kernel in kernels if kernel[0, 0].numel() > 1)
    steps(range(3), whole)
    save_checkpoint(tmp_path, 3, state(whole.networks, whole.optimizers), {"best": None}, identity=IDENTITY)
    restore(load_checkpoint(tmp_path, IDENTITY).tensors, resumed.networks, resumed.optimizers)
    for step in (whole, resumed):
        steps(range(3, 6), step)
    assert same(state(resumed.networks, resumed.optimizers), state(whole.networks, whole.optimizers))


def test_a_checkpoint_holds_weights_statistics_and_both_moments_of_the_optimizer():
    parts = learner()
    learn(*parts, 0)
    kinds = {key.rsplit("/", 1)[1].rsplit(".", 1)[-1] for key in state(*parts)}
    assert {"weight", "bias", "running_mean", "running_var", "exp_avg", "exp_avg_sq", "step"} <= kinds


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert load_checkpoint(tmp_path / "nothing", IDENTITY) is None


def test_facts_and_step_are_read_back(tmp_path):
    best = {"epoch": 2, "psnr": 30.5}
    save_checkpoint(tmp_path, 12, state(*learner()), {"best": best, "record": {"seconds": 1.5}}, identity=IDENTITY)
    checkpoint = load_checkpoint(tmp_path, IDENTITY)
    assert (checkpoint.step, checkpoint.facts.best, checkpoint.facts.record["seconds"]) == (12, best, 1.5)
    assert checkpoint.warnings == ()


def test_the_last_two_and_those_to_keep_stay(tmp_path):
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, state(*learner()), {}, identity=IDENTITY, keep=[2])
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"step-{n:08d}.json" for n in (2, 5, 6)]
    assert len(list(tmp_path.iterdir())) == 6


def test_the_newest_up_to_a_step_is_read(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(*learner()), {}, identity=IDENTITY, keep=[1])
    assert load_checkpoint(tmp_path, IDENTITY).step == 3
    assert load_checkpoint(tmp_path, IDENTITY, last=2).step == 2


def test_another_identity_is_refused_with_the_difference_in_words(tmp_path):
    save_checkpoint(tmp_path, 1, state(*learner()), {}, identity=IDENTITY)
    with pytest.raises(CheckpointError, match=r"training\.batch = 7, now 3") as refusal:
        load_checkpoint(tmp_path, {**IDENTITY, "training": {"batch": 3}})
    assert refusal.value.exit_code == 5


def test_tensors_that_do_not_fit_the_network_are_refused():
    tensors = state(*learner())
    other = {"generator": generators.build("small", in_channels=2)}
    with pytest.raises(CheckpointError, match="does not fit"):
        restore(tensors, other, {})


def test_killed_between_any_two_changes_of_the_folder_the_last_whole_checkpoint_loads(tmp_path):
    parts = learner()
    tensors = state(*parts)
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        for step in (1, 2):
            save_checkpoint(folder, step, tensors, {}, identity=IDENTITY)
        end = killed_at(number, partial(save_checkpoint, folder, 3, tensors, {}, identity=IDENTITY))
        loaded = load_checkpoint(folder, IDENTITY)
        assert loaded.step == 3 if end == 0 else loaded.step in (2, 3)
        assert same(loaded.tensors, tensors)
        assert not loaded.warnings
        if end == 0:
            break
        assert end == -signal.SIGKILL
    assert number > 4  # two files are named, and two of an older checkpoint removed
