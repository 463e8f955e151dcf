"""The stride-8 patches of a volume, mapped by the plain network, by this one, and by what a user would pick instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.benchmark.rounds import rounds
from unscanned.benchmark.worker import Worker
from unscanned.machine import precision as precisions
from unscanned.machine.precision import autocast
from unscanned.models import generators
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.volumes.patches import starts

__all__ = ["PATCH", "STRIDE", "Network", "inference", "noise"]

PATCH, STRIDE = 32, 8
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


def _plain(network: Network) -> Mapping:
    generator = network.build("plain")
    return lambda volume: reconstruct(
        volume[None], generator, patch=PATCH, stride=STRIDE, batch=1, device=network.device
    )


def _unscanned(network: Network) -> Mapping:
    generator = network.build("auto")
    return lambda volume: reconstruct(volume[None], generator, patch=PATCH, stride=STRIDE, device=network.device)


def _frequency_domain(network: Network) -> Mapping:
    generator = network.build("spectral")
    return lambda volume: reconstruct(volume[None], generator, patch=PATCH, stride=STRIDE, device=network.device)


def _bfloat16(network: Network) -> Mapping:
    """As one would run the plain network on a GPU: many patches at a time, cuDNN choosing its algorithms."""
    generator = network.build("plain").to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def run(volume: np.ndarray) -> np.ndarray:
        with torch.backends.cudnn.flags(benchmark=True), autocast("bfloat16", network.device):
            return reconstruct(volume[None], generator, patch=PATCH, stride=STRIDE, device=network.device)

    return run


def _monai(network: Network) -> Mapping:
    from monai.inferers import sliding_window_inference  # MONAI takes seconds to import, and is optional

    generator = network.build("plain").eval()

    @torch.inference_mode()
    def run(volume: np.ndarray) -> np.ndarray:
        source = torch.from_numpy(volume[None, None]).to(network.device)
        mapped = sliding_window_inference(
            source, (PATCH,) * 3, 1, generator, overlap=1 - STRIDE / PATCH, mode="constant"
        )
        return cast(Tensor, mapped)[0, 0].cpu().numpy()

    return run


class _OnnxNetwork(nn.Module):
    """The plain network as ONNX Runtime runs it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        program = torch.onnx.export(
            network.eval(), (torch.zeros(1, 1, PATCH, PATCH, PATCH),), dynamo=True, verbose=False
        )
        assert program is not None
        self.session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, x: Tensor) -> Tensor:
        (name,) = (each.name for each in self.session.get_inputs())
        return torch.from_numpy(self.session.run(None, {name: x.numpy()})[0])


def _onnx(network: Network) -> Mapping:
    generator = _OnnxNetwork(network.build("plain"))
    return lambda volume: reconstruct(volume[None], generator, patch=PATCH, stride=STRIDE, batch=1)


CONTENDERS: dict[str, Callable[[Network], Mapping]] = {
    "plain PyTorch": _plain,
    "unscanned": _unscanned,
    "MONAI sliding window": _monai,
    "ONNX Runtime": _onnx,
    "frequency domain": _frequency_domain,
    "plain PyTorch, bfloat16": _bfloat16,
}

ONLY_ON = {"ONNX Runtime": "cpu", "frequency domain": "cuda", "plain PyTorch, bfloat16": "cuda"}
"Contenders that are compared on one kind of device: on a CPU, the frequency domain is what unscanned takes."

IMPORTS = {"MONAI sliding window": ("monai.inferers",), "ONNX Runtime": ("onnxruntime", "onnxscript")}
"What a contender imports; its memory is not counted."


def inference(network: Network, edge: int, repeats: int) -> dict[str, Any]:
    """Map the stride-8 patches of one volume with every contender that is installed.

    Args:
        network: The generator.
        edge: Of the cubic volume, at least a patch's.
        repeats: Rounds.
    """
    volume = noise(network.seed, edge, edge, edge)
    kind = torch.device(network.device).type
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in CONTENDERS:
            if ONLY_ON.get(name, kind) != kind:
                continue
            try:
                worker = Worker(_mapping, name, network, volume, imports=IMPORTS.get(name, ()))
            except ImportError as error:
                missing[name] = str(error)
            else:
                workers[name] = stack.enter_context(worker)
        results = {name: worker.run() for name, worker in workers.items()}
        reference = results["plain PyTorch"]
        table = rounds({name: worker.timed for name, worker in workers.items()}, repeats)
        for name, row in table.items():
            row["relative_difference"] = float(np.linalg.norm(results[name] - reference) / np.linalg.norm(reference))
            row["peak_mib"] = workers[name].peak_mib()
    return {"patches": len(starts(volume.shape, PATCH, STRIDE)), "contenders": table, "missing": missing}


def _mapping(name: str, network: Network, volume: np.ndarray) -> Callable[[], np.ndarray]:
    """Return what maps the volume with a contender."""
    precisions.choose("float32", torch.device(network.device))
    return partial(CONTENDERS[name](network), volume)
