"""The benchmark compares what is the same function, and its result can be written, read and drawn."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unscanned.benchmark import inference as inference_module
from unscanned.benchmark.floor import direct_operations, spectral_cost
from unscanned.benchmark.inference import CONTENDERS, Network, noise
from unscanned.benchmark.run import benchmark
from unscanned.benchmark.show import check_plot, plot, table
from unscanned.benchmark.workload import Workload
from unscanned.errors import ResourceError, SettingsError
from unscanned.machine.memory import high_water_mib
from unscanned.machine.precision import available
from unscanned.models.nie import NieGenerator
from unscanned.models.spectral import kernel_spectrum
from unscanned.schema import read


@pytest.mark.slow
def test_a_small_run_measures_every_contender_and_can_be_written_and_drawn(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("monai")
    monkeypatch.setattr("unscanned.benchmark.training.WARM_UP", 0.0)
    monkeypatch.setattr("unscanned.benchmark.machine.ROUNDS", 2)
    has_onnx = all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript"))
    expected = {
        "ONNX Runtime": has_onnx,
        "OpenVINO": has_onnx and find_spec("openvino") is not None,
        "MONAI sliding window, bfloat16": "bfloat16" in available(torch.device("cpu")),
    }
    seen: list[tuple[int, int, str]] = []
    result = benchmark(
        Workload(network="small", edge=40, repeats=1, batch=2, patches=(1, 2), volumes=(16,)),
        edges=(8,),
        layers=((9, 2, 4, 2),),
        progress=lambda *step: seen.append(step),
    )
    assert json.loads(json.dumps(result)) == result
    assert seen[-1][0] == seen[-1][1]
    inference, training = result["inference"], result["training"]
    assert inference["patches"] == 8
    assert {*inference["contenders"], *inference["missing"]} == {
        "plain PyTorch",
        "unscanned",
        "MONAI sliding window",
        *expected,
    }
    assert {*inference["missing"]} == {name for name, is_here in expected.items() if not is_here}
    for name, row in inference["contenders"].items():
        error = row["relative_difference"]
        assert 1e-5 < error < 0.05 if "bfloat16" in name else error < 1e-5
        assert row["seconds"] > 0
        assert row["peak_mib"] > 0
    for row in training["contenders"].values():
        assert row["gradient_error"] < 1e-5
        assert row["peak_mib"] > 0
    each = inference["contenders"]["unscanned"]["seconds"] / inference["patches"]
    assert 0 < result["floor"]["seconds_operations"] < each
    assert 0 < result["floor"]["gigaflop"] < result["floor"]["plain_gigaflop"]
    text = table(result)
    assert all(name in text for name in inference["contenders"])
    assert all(
        f"| {name} |" in text for name in ("1 patch", "2 patches", "16³ voxels, mode volume", "8³", "9³, 2, 4³, 2")
    )
    plot(result, tmp_path / "size.png")
    assert (tmp_path / "size.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["frequency domain", "plain PyTorch, bfloat16"])
def test_what_is_compared_on_a_gpu_maps_the_same_function(name: str) -> None:
    network, volume = Network("small", 0, "cpu"), noise(0, 40, 40, 40)
    plain, other = (CONTENDERS[each].make(network)(volume) for each in ("plain PyTorch", name))
    difference = np.linalg.norm(other - plain) / np.linalg.norm(plain)
    assert difference < (0.05 if "bfloat16" in name else 1e-5)


def test_on_a_gpu_cudnn_chooses_its_algorithms_for_bfloat16(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(inference_module, "reconstruct", lambda *_, **__: seen.append(torch.backends.cudnn.enabled))
    CONTENDERS["plain PyTorch, bfloat16"].make(Network("small", 0, "cpu"))(noise(0, 32, 32, 32))
    assert seen == [True]


def test_bfloat16_is_not_timed_on_a_processor_without_it_and_the_reason_is_told(monkeypatch) -> None:
    pytest.importorskip("monai")
    names = ("plain PyTorch", "MONAI sliding window, bfloat16")
    monkeypatch.setattr(inference_module, "CONTENDERS", {name: CONTENDERS[name] for name in names})
    monkeypatch.setattr(inference_module, "available", lambda device: ("float32",))
    found = inference_module.inference(Network("small", 0, "cpu"), 32, 1)
    assert list(found["contenders"]) == ["plain PyTorch"]
    assert found["missing"] == {"MONAI sliding window, bfloat16": "cpu has no bfloat16 arithmetic"}


def test_a_process_that_cannot_import_pytorch_is_told_and_is_no_bug(monkeypatch) -> None:
    plain = dataclasses.replace(CONTENDERS["plain PyTorch"], imports=("there_is_no_such_module",))
    monkeypatch.setattr(inference_module, "CONTENDERS", {"plain PyTorch": plain})
    with pytest.raises(ResourceError, match=r"cannot import.*there_is_no_such_module"):
        inference_module.inference(Network("small", 0, "cpu"), 32, 1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("repeats", 0), ("steps", 0), ("edge", 16), ("network", "unet"), ("patches", (1, 0)), ("volumes", (0,))],
)
def test_a_benchmark_of_nothing_is_refused_before_any_work(argument: str, value: int) -> None:
    with pytest.raises(SettingsError, match=argument):
        read(Workload, {argument: value})


def test_a_plot_of_no_known_format_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ending in \.png"):
        check_plot(tmp_path / "size.docx")


def test_the_memory_of_a_system_that_keeps_no_high_water_mark_is_unknown(monkeypatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tpython\nVmRSS:\t1024 kB\n")
    assert high_water_mib() is None
    monkeypatch.setattr(Path, "read_text", lambda self: "VmHWM:\t  2048 kB\nVmRSS:\t1024 kB\n")
    assert high_water_mib() == 2


@pytest.mark.parametrize("batch", [2, 5])
def test_the_floor_counts_the_operations_that_pytorch_counts(batch: int) -> None:
    grid, kernel, into, out = 6, 5, 3, 4
    layer = kernel_spectrum(torch.randn(out, into, kernel, kernel, kernel), None, (grid,) * 3)
    x = torch.randn(grid, grid, grid, into, batch)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        layer(x)
    counts = {str(name): value for name, value in counter.get_flop_counts()["Global"].items()}
    # PyTorch counts a complex product as it counts a real one: two operations a pair instead of eight
    assert spectral_cost(grid, kernel, into, out, batch)[0] == 4 * (counts["aten.mm"] + counts["aten.bmm"])


def test_the_plain_operations_of_the_reference_are_those_of_its_layers() -> None:
    assert direct_operations(NieGenerator(), 32) / 1e9 == pytest.approx(238.4, abs=0.1)


def test_onnx_runtime_reports_nothing_to_its_maker() -> None:
    """Where its identifier cannot be kept, its telemetry warns, so silence says that there is none."""
    pytest.importorskip("onnxruntime")

    def told(code: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        environment["XDG_CACHE_HOME"] = "/proc/none"
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return run.stderr

    if "telemetry" not in told("import onnxruntime"):
        pytest.skip("this release of ONNX Runtime has no telemetry here")
    assert "telemetry" not in told("import unscanned.benchmark.inference, onnxruntime")
