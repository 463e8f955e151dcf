"""The stride-8 patches of a volume, mapped by the plain network, by this one, and by what a user would pick instead."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.benchmark.rounds import rounds
from unscanned.benchmark.worker import Worker
from unscanned.benchmark.workload import PATCH, STRIDE
from unscanned.errors import ResourceError
from unscanned.machine.precision import autocast, available, set_process_precision
from unscanned.models import generators
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.volumes.patches import starts

__all__ = ["CONTENDERS", "Network", "inference", "noise"]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports its use to its maker, from its import on

Mapping = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Network:
    """A generator whose weights follow from its name and the seed.

    Attributes:
        name: Key of `GENERATORS`.
        seed: Of the weights.
        device: Where to put them: cpu, cuda or cuda:N.
    """

    name: str
    seed: int
    device: str

    @property
    def is_on_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return torch.device(self.device).type == "cpu"

    def build(self, convolution: str, *, slope: float = 0.2) -> nn.Module:
        """Return the generator, fresh."""
        torch.manual_seed(self.seed)
        return generators.build(self.name, slope=slope, convolution=convolution).to(self.device)


def noise(seed: int, *shape: int) -> np.ndarray:
    """Return standard normal values, float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _averaged(network: Network, mapped: nn.Module, batch: int | None = None) -> Mapping:
    return lambda volume: reconstruct(
        volume[None], mapped, patch=PATCH, stride=STRIDE, batch=batch, device=network.device
    )


def _bfloat16(network: Network) -> Mapping:
    """As one would run the plain network on a GPU: many patches at a time, cuDNN choosing its algorithms."""
    plain = network.build("plain").to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    averaged = _averaged(network, plain)

    def run(volume: np.ndarray) -> np.ndarray:
        # without `enabled`, this would turn cuDNN off
        with torch.backends.cudnn.flags(enabled=True, benchmark=True), autocast("bfloat16", network.device):
            return averaged(volume)

    return run


def _monai(network: Network, precision: str = "float32") -> Mapping:
    from monai.inferers import sliding_window_inference  # MONAI takes seconds to import, and is optional

    generator = network.build("plain").eval()

    @torch.inference_mode()
    def run(volume: np.ndarray) -> np.ndarray:
        source = torch.from_numpy(volume[None, None]).to(network.device)
        with autocast(precision, network.device):
            mapped = sliding_window_inference(
                source, (PATCH,) * 3, 1, generator, overlap=1 - STRIDE / PATCH, mode="constant"
            )
        return cast(Tensor, mapped)[0, 0].float().cpu().numpy()

    return run


class _Runtime(nn.Module):
    """The plain network as another library than PyTorch runs it, a patch at a time."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.run(x.numpy()))


def _onnx_program(network: Network) -> bytes:
    """Return the plain network for one patch, in ONNX."""
    example = torch.zeros(1, 1, PATCH, PATCH, PATCH)
    program = torch.onnx.export(network.build("plain").eval(), (example,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _onnx(network: Network) -> Mapping:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_onnx_program(network), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return _averaged(network, _Runtime(lambda x: session.run(None, {given.name: x})[0]), batch=1)


def _openvino(network: Network) -> Mapping:
    """In float32: where the processor has bfloat16, OpenVINO would take that by itself."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(_onnx_program(network)), "CPU", options)
    return _averaged(network, _Runtime(lambda x: compiled(x)[0]), batch=1)


@dataclass(frozen=True)
class Contender:
    """What is compared.

    Attributes:
        make: Returns what maps a volume.
        kinds: Of devices on which it is compared.
        precision: Of its arithmetic; without it in hardware, it is left out.
        imports: What it imports; its memory is not counted.
    """

    make: Callable[[Network], Mapping]
    kinds: tuple[str, ...] = ("cpu", "cuda")
    precision: str = "float32"
    imports: tuple[str, ...] = ()


PLAIN = "plain PyTorch"
"What the others are held against."

CONTENDERS: dict[str, Contender] = {
    PLAIN: Contender(lambda network: _averaged(network, network.build("plain"), batch=1)),
    "unscanned": Contender(lambda network: _averaged(network, network.build("auto"))),
    "MONAI sliding window": Contender(_monai, imports=("monai.inferers",)),
    "MONAI sliding window, bfloat16": Contender(
        partial(_monai, precision="bfloat16"), precision="bfloat16", imports=("monai.inferers",)
    ),
    "ONNX Runtime": Contender(_onnx, kinds=("cpu",), imports=("onnxruntime", "onnxscript")),
    "OpenVINO": Contender(_openvino, kinds=("cpu",), imports=("openvino", "onnxscript")),
    # on a CPU, this is what unscanned takes
    "frequency domain": Contender(lambda network: _averaged(network, network.build("spectral")), kinds=("cuda",)),
    "plain PyTorch, bfloat16": Contender(_bfloat16, kinds=("cuda",), precision="bfloat16"),
}


def inference(network: Network, edge: int, repeats: int) -> dict[str, Any]:
    """Map the stride-8 patches of one volume with every contender that can run here.

    Args:
        network: The generator.
        edge: Of the cubic volume, at least a patch's.
        repeats: Rounds.

    Raises:
        ResourceError: A process of its own cannot import PyTorch, so there is nothing to compare with.
    """
    volume = noise(network.seed, edge, edge, edge)
    device = torch.device(network.device)
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, contender in CONTENDERS.items():
            if device.type not in contender.kinds:
                continue
            if contender.precision not in available(device):
                missing[name] = f"{device} has no {contender.precision} arithmetic"
                continue
            try:
                worker = Worker(_mapping, name, network, volume, imports=contender.imports)
            except ImportError as error:
                if name == PLAIN:
                    raise ResourceError(
                        "a process of its own cannot import what it needs", where=name, found=error
                    ) from error
                missing[name] = str(error)
            else:
                workers[name] = stack.enter_context(worker)
        results = {name: worker.run() for name, worker in workers.items()}
        reference = results[PLAIN]
        table = rounds({name: worker.timed for name, worker in workers.items()}, repeats)
        for name, row in table.items():
            row["relative_difference"] = float(np.linalg.norm(results[name] - reference) / np.linalg.norm(reference))
            row["peak_mib"] = workers[name].peak_mib()
    return {"patches": len(starts(volume.shape, PATCH, STRIDE)), "contenders": table, "missing": missing}


def _mapping(name: str, network: Network, volume: np.ndarray) -> Callable[[], np.ndarray]:
    """Return what maps the volume with a contender."""
    set_process_precision("float32", network.device)
    return partial(CONTENDERS[name].make(network), volume)
