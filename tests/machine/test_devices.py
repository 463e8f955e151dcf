"""What must hold on every device: float32 agreement with a float64 reference, and a run from training to a volume.

The CPU's turn is the check that the tests themselves work; `make gpu` gives a GPU its turn.
"""

import numpy as np
import pytest
import torch

from unscanned.machine.precision import set_process_precision
from unscanned.models.nie import NieGenerator
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.synthesis.verify import TOLERANCE, verify
from unscanned.training.log import read_log
from unscanned.training.run import train
from unscanned.volumes.nifti import read_volume

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")

pytestmark = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_CUDA)])


def network(convolution, dtype=torch.float32):
    """Return a narrow nine-layer generator; without a kink, at which rounding decides the sign of one value."""
    torch.manual_seed(0)
    generator = NieGenerator(filters=(4, 4, 4, 6, 6, 6, 4, 4), slope=1.0).to(dtype)
    generator.convolution = convolution
    return generator


def values(generator, x, cotangent):
    """Return the output and the gradient of each kernel, on the CPU in float64."""
    y = generator(x)
    y.backward(cotangent)
    found = {name: p.grad for name, p in generator.named_parameters() if "bias" not in name}
    return {name: value.detach().cpu().double() for name, value in {"output": y, **found}.items()}


def test_outputs_and_gradients_are_as_good_as_those_of_conv3d(device):
    set_process_precision("float32", torch.device(device))
    torch.manual_seed(1)
    x, cotangent = torch.randn(2, 1, 16, 16, 16), torch.randn(2, 1, 16, 16, 16)
    truth = values(network("plain", torch.float64), x.double(), cotangent.double())
    errors = {}
    for convolution in ("plain", "auto", "spectral"):
        found = values(network(convolution).to(device), x.to(device), cotangent.to(device))
        errors[convolution] = {name: float((found[name] - v).norm() / v.norm()) for name, v in truth.items()}
    for convolution in ("auto", "spectral"):
        assert errors[convolution]["output"] < 1e-5
        for name, error in errors[convolution].items():
            assert error < max(3 * errors["plain"][name], 3e-7), name


def test_a_run_trains_and_resumes(device, tiny_dataset, tiny_settings, tiny_run, tmp_path):
    def settings(epochs):
        return tiny_settings.change(training={"device": device, "epochs": epochs})

    run = tmp_path / "run"
    train(tiny_dataset, run, settings(1))
    train(tiny_dataset, run, settings(2))
    steps, expected = (
        [e for e in read_log(folder / "log.jsonl") if e["event"] == "step"] for folder in (run, tiny_run)
    )
    assert len(steps) == len(expected)
    for name in ("d_loss", "g_loss", "l1", "gdl"):  # of the first step: later ones drift apart between devices
        assert steps[0][name] == pytest.approx(expected[0][name], rel=1e-4)
        assert np.isfinite([step[name] for step in steps]).all()


@pytest.mark.parametrize("mode", ["patches", "volume"])
def test_a_volume_equals_that_of_the_cpu_within_the_stated_tolerance(device, mode, tiny_dataset, tiny_run, tmp_path):
    scan = tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    made = synthesize(load_model(tiny_run, device), [(scan, None)], tmp_path, mode=mode).written[0]
    assert np.isfinite(read_volume(made).array).all()
    checked = verify(made, device="cpu")
    assert checked.verdict in ("identical", "within tolerance")
    assert checked.difference <= TOLERANCE["float32"]
