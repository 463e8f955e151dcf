import json

import numpy as np
import pytest
import torch

from unscanned.datasets.pairs import Pair
from unscanned.losses import GeneratorLoss
from unscanned.machine.precision import available
from unscanned.models import discriminators
from unscanned.models.nie import SmallGenerator
from unscanned.settings import Prepare, Training
from unscanned.training import optimizers
from unscanned.training.adversary import Adversary
from unscanned.training.batches import PatchBatches
from unscanned.training.loop import train_stage
from unscanned.training.prepare import prepare_pair
from unscanned.training.step import Step
from unscanned.volumes.intensity import Contrast, Normalization
from unscanned.volumes.nifti import write_volume

AS_IT_IS = Normalization(99.9, Contrast(1.0, 0.0, 1.0), Contrast(1.0, 0.0, 1.0))


def prepared(folder):
    random = np.random.default_rng(0)
    head = np.zeros((40, 36, 44), np.float32)
    head[6:34, 6:30, 6:38] = 100
    pair = Pair("01", None, folder / "source.nii.gz", folder / "target.nii.gz")
    for path in (pair.source, pair.target):
        write_volume(path, head + 20 * random.random(head.shape, np.float32) * (head > 0), np.eye(4))
    return prepare_pair(pair, folder / "prepared", Prepare(shape=(32, 32, 32)))


def test_a_margin_is_cut_from_the_volume_around_the_same_patch(tmp_path):
    case = prepared(tmp_path)
    plain, wide = (PatchBatches([case], AS_IT_IS, Training(patch=16, batch=8, margin=margin)) for margin in (0, 5))
    (source, target), (around, same) = plain(0), wide(0)
    assert around.shape == (8, 1, 26, 26, 26)
    assert torch.equal(target, same)
    assert torch.equal(around[..., 5:-5, 5:-5, 5:-5], source)
    first = next(n for n, row in enumerate(plain.chosen(0)) if tuple(row[1:]) == (0, 0, 0))
    assert torch.equal(around[first, 0, 5:, 5:, 5:], torch.from_numpy(case.source[:21, :21, :21].copy()))
    assert torch.equal(around[first, 0, 0], around[first, 0, 5])


def train(folder, batches, precision="float32"):
    torch.manual_seed(0)
    generator = SmallGenerator()
    discriminator = discriminators.build("small", patch=16)
    settings = Training(epochs=1)
    adversary = Adversary(discriminator, optimizers.build(discriminator, settings), precision)
    loss = GeneratorLoss({"l1": 1.0, "gdl": 1.0})
    step = Step(generator, optimizers.build(generator, settings), loss, adversary, adversarial=0.5, precision=precision)
    result = train_stage(folder, step, batches, lambda network: {}, settings)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return generator, result, [event for event in events if event["event"] == "step"]


def test_the_losses_see_the_centre_and_the_generator_the_margin(tmp_path):
    case = prepared(tmp_path)
    steps = {}
    for margin in (0, 8):
        batches = PatchBatches([case], AS_IT_IS, Training(patch=16, batch=4, margin=margin))
        _, _, steps[margin] = train(tmp_path / str(margin), batches)
    torch.manual_seed(0)
    network, wide = SmallGenerator(), PatchBatches([case], AS_IT_IS, Training(patch=16, batch=4, margin=8))
    around, target = wide(0)
    with torch.no_grad():
        centre = network(around)[..., 8:-8, 8:-8, 8:-8]
    assert np.isclose(steps[8][0]["l1"], float((centre - target).abs().mean()), rtol=1e-4)
    assert not np.isclose(steps[8][0]["l1"], steps[0][0]["l1"], rtol=1e-4)


def test_the_share_of_waiting_is_that_of_the_steps_in_the_log(tmp_path):
    case = prepared(tmp_path)
    _, result, steps = train(tmp_path, PatchBatches([case], AS_IT_IS, Training(patch=16, batch=4)))
    share = sum(step["waiting_s"] for step in steps) / sum(step["seconds"] for step in steps)
    assert np.isclose(result["waiting_share"], share)
    assert 0 < share < 1


@pytest.mark.skipif("bfloat16" not in available(torch.device("cpu")), reason="the processor has no bfloat16")
def test_bfloat16_trains_float32_weights_to_nearly_the_same(tmp_path):
    case = prepared(tmp_path)
    batches = PatchBatches([case], AS_IT_IS, Training(patch=16, batch=4))
    exact, _, steps = train(tmp_path / "float32", batches)
    rounded, _, rough = train(tmp_path / "bfloat16", batches, precision="bfloat16")
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert np.isclose(steps[0]["l1"], rough[0]["l1"], rtol=0.02)
    assert steps[0]["l1"] != rough[0]["l1"]
    assert not all(torch.equal(a, b) for a, b in zip(exact.parameters(), rounded.parameters(), strict=True))
