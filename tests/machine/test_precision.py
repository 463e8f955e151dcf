import pytest
import torch

from unscanned.errors import SettingsError
from unscanned.machine import precision
from unscanned.machine.precision import PRECISIONS, autocast, available, check_precision

CPU = torch.device("cpu")


def test_float32_is_always_there_and_changes_nothing():
    check_precision("float32", CPU)
    with autocast("float32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_precision_that_the_device_lacks_is_refused_with_those_it_has():
    with pytest.raises(SettingsError, match=r"synthesis\.precision.*tf32 on cpu, expected one of float32"):
        check_precision("tf32", CPU, where="synthesis.precision")
    with pytest.raises(SettingsError, match="no such precision"):
        check_precision("float8", CPU)


def test_bfloat16_follows_the_processor():
    if "bfloat16" not in available(CPU):
        with pytest.raises(SettingsError, match="expected one of float32"):
            check_precision("bfloat16", CPU)
        return
    check_precision("bfloat16", CPU)
    with autocast("bfloat16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.fixture
def backends():
    """What on CUDA decides on TF32; as they were, afterwards."""
    both = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in both]
    yield both
    for backend, allowed in zip(both, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("of_training", [False, True])
@pytest.mark.parametrize(("name", "allowed"), [("tf32", True), ("float32", False), ("bfloat16", False)])
def test_on_cuda_validation_has_its_own_arithmetic_within_a_training(name, allowed, of_training, backends):
    for backend in backends:
        backend.allow_tf32 = of_training
    with autocast(name, "cuda"):
        assert [backend.allow_tf32 for backend in backends] == [allowed] * 2
    assert [backend.allow_tf32 for backend in backends] == [of_training] * 2


@pytest.mark.parametrize("name", ["bfloat16", "tf32"])
def test_the_frequency_domain_takes_float32_alone(name, monkeypatch):
    monkeypatch.setattr(precision, "available", lambda device: PRECISIONS)  # as on a GPU
    with pytest.raises(SettingsError, match="auto or plain"):
        check_precision(name, CPU, convolution="spectral")


def test_the_settings_know_the_same_precisions():
    import typing

    from unscanned.settings import Precision

    assert typing.get_args(Precision) == PRECISIONS
