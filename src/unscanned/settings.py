"""Settings: frozen dataclasses, filled from a preset, a TOML file and options, in that order.

Every component takes plain keyword arguments; only the edge (`train`, `reproduce`, the command line) sees a `Settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from unscanned.errors import SettingsError

__all__ = [
    "Context",
    "Data",
    "Discriminator",
    "Generator",
    "Loss",
    "Prepare",
    "Settings",
    "Split",
    "Synthesis",
    "Training",
    "decisive",
    "difference",
    "short_digest",
    "is_contrast",
    "preset_names",
    "resolve",
    "to_dict",
    "to_toml",
]


Precision = Literal["float32", "tf32", "bfloat16"]
Initialization = Literal["xavier_uniform", "xavier_normal", "kaiming_normal", "normal", "pytorch"]


@dataclass(frozen=True)
class Data:
    """Which contrasts, and how the dataset is laid out."""

    source: str = "PD"
    "Contrast that will be at hand (BIDS suffix with or without its w, or a CSV column)."
    target: str = "T2"
    "Contrast to synthesize."
    layout: Literal["auto", "bids", "ixi", "csv"] = "auto"
    "How subjects are found; auto looks at the folder."


@dataclass(frozen=True)
class Prepare:
    """The model's grid and intensity scale."""

    shape: tuple[int, int, int] = (224, 224, 128)
    "Voxels along (i, j, k) in RAS+ that training volumes are cropped or padded to, around the head's centre."
    spacing_mm: float | None = None
    "Isotropic voxel size to resample to; unset keeps each scan's own."
    resample: bool = False
    "Resample the target onto the source's grid where the two differ; otherwise such a pair is refused."
    percentile: float = 99.9
    "Percentile of the intensities inside the head that becomes 1."


@dataclass(frozen=True)
class Split:
    """Subjects to train on, to choose the epoch with, and to test on. Sessions of a subject stay together."""

    train: int = 60
    "Number of training subjects."
    validation: int = 3
    "Number of validation subjects."
    test: int = 26
    "Number of test subjects."
    seed: int = 0
    "Seed of the shuffle of subjects."
    file: str | None = None
    "JSON file with the lists train, validation and test; overrides the numbers."


@dataclass(frozen=True)
class Generator:
    """The network that makes the target."""

    name: str = "nie"
    "Architecture, by its name in unscanned.models.generators."
    residual: bool = False
    "Add the source to the output of the last convolution (ResGAN)."
    slope: float = 0.2
    "Negative slope of LeakyReLU."
    initialization: Initialization = "xavier_uniform"
    "How the weights begin."
    output: Literal["linear", "tanh", "batch_norm"] = "linear"
    "What follows the last convolution; in a ResGAN before the source is added."
    convolution: Literal["auto", "plain", "spectral"] = "auto"
    "Arithmetic of large and dilated kernels; the function is the same."


@dataclass(frozen=True)
class Discriminator:
    """The network that tells acquired from synthetic."""

    name: str = "nie"
    "Architecture, by its name in unscanned.models.discriminators."
    slope: float = 0.2
    "Negative slope of LeakyReLU."
    initialization: Initialization = "xavier_uniform"
    "How the weights begin."


@dataclass(frozen=True)
class Loss:
    """Weights of the generator's loss."""

    adversarial: float = 0.5
    "Weight of the adversarial term; 0 trains without a discriminator."
    l1: float = 1.0
    "Weight of the L1 term."
    gdl: float = 1.0
    "Weight of the gradient difference term."
    reduction: Literal["sum", "mean"] = "sum"
    "Over voxels, for L1 and GDL: sum (the formulas are norms) or mean. Over the batch it is the mean."


@dataclass(frozen=True)
class Training:
    """Adversarial training."""

    epochs: int = 42
    "Passes over the training patches."
    steps_per_epoch: int | None = None
    "Steps that count as an epoch; unset means all patches once."
    batch: int = 7
    "Patches a step."
    patch: int = 32
    "Edge of a cubic patch, in voxels."
    margin: int = 0
    "Voxels around each patch that the generator sees and no loss does; from 29 on they prepare it for mode volume."
    min_head: float = 0.0
    "Share of a patch that must lie inside the head for it to be trained on; 0 keeps all patches."
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    "Optimizer of both networks."
    learning_rate: float = 1e-4
    "Its learning rate."
    beta1: float = 0.5
    "Adam's decay of the first moment; the momentum of rmsprop and sgd."
    beta2: float = 0.999
    "Adam's decay of the second moment; rmsprop's decay of the squares."
    order: Literal["discriminator_first", "generator_first"] = "discriminator_first"
    "Which network takes its step first; the other's loss then sees it changed."
    seed: int = 0
    "Seed of the weights and of the order of patches."
    workers: int = 0
    "Processes that cut patches ahead of time; the result does not depend on it."
    validation_stride: int = 32
    "Stride of the reconstruction that chooses the best epoch."
    checkpoint_minutes: float = 5.0
    "Minutes between checkpoints within an epoch; one is always written at its end."
    device: str = "auto"
    "auto, cpu, cuda or cuda:N."
    threads: int | None = None
    "CPU threads; unset leaves it to PyTorch."
    precision: Precision = "float32"
    "Arithmetic of the networks: float32, tf32 (CUDA) or bfloat16, where the device has it. Weights stay float32."


@dataclass(frozen=True)
class Context:
    """The auto-context chain."""

    stages: int = 1
    "Generators in the chain; each after the first also sees the previous one's output."
    input: Literal["volume", "patch"] = "volume"
    "What the next stage sees of the previous: its reconstructed volume, or (in_sample) its output on the same patch."
    training_input: Literal["out_of_fold", "in_sample"] = "out_of_fold"
    "Whether a training subject's context comes from a model that did not train on it."
    folds: int = 2
    "Number of folds for out_of_fold."
    stride: int = 8
    "Stride of the reconstruction that gives the context of training volumes."


@dataclass(frozen=True)
class Synthesis:
    """How a volume is made: averaged from overlapping patches, or whole."""

    mode: Literal["patches", "volume"] = "patches"
    "patches averages overlapping patches (the report); volume maps it whole, which is another function."
    crop: Literal["auto", "always", "never"] = "auto"
    "Map at most prepare.shape voxels around the head and leave the rest at 0; auto: where they hold the whole head."
    stride: int = 8
    "Voxels between neighbouring patches along each axis, in mode patches."
    batch: int | None = None
    "Patches at a time; unset chooses by device. The result does not depend on it beyond rounding."
    memory_mib: int | None = None
    "MiB that mode volume may work in, which cuts the volume accordingly; unset means 1440, or most of a GPU's memory."
    precision: Precision = "float32"
    "Arithmetic of the networks, as in training.precision."


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run."""

    preset: str = "resgan"
    data: Data = field(default_factory=Data)
    prepare: Prepare = field(default_factory=Prepare)
    split: Split = field(default_factory=Split)
    generator: Generator = field(default_factory=Generator)
    discriminator: Discriminator = field(default_factory=Discriminator)
    loss: Loss = field(default_factory=Loss)
    training: Training = field(default_factory=Training)
    context: Context = field(default_factory=Context)
    synthesis: Synthesis = field(default_factory=Synthesis)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("unscanned") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def resolve(
    preset: str = "resgan", file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings of a preset, overridden by a TOML file, overridden by `overrides`.

    Args:
        preset: One of `preset_names()`.
        file: A TOML file with any of the tables and keys of `Settings`.
        overrides: Nested mapping of the same shape, such as `{"training": {"epochs": 3}}`.

    Raises:
        SettingsError: Unknown preset, unreadable file, unknown key, or a value of the wrong type.

    Example:
        >>> resolve("adv", overrides={"training": {"epochs": 3}}).training.epochs
        3
    """
    names = preset_names()
    if preset not in names:
        raise SettingsError(
            "no such preset", where=preset, expected=f"one of {', '.join(names)}", do=_near(preset, names)
        )
    layers: list[tuple[str, Mapping[str, Any]]] = []
    text = (resources.files("unscanned") / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
    layers.append((f"preset {preset}", tomllib.loads(text)))
    if file is not None:
        layers.append((str(file), _read_toml(Path(file))))
    layers.append(("options", overrides or {}))
    settings = Settings(preset=preset)
    for origin, values in layers:
        settings = _merge(settings, values, origin)
    _validate(settings)
    return settings


def to_dict(settings: Any) -> dict[str, Any]:
    """Return a dataclass as nested dicts of JSON values."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(settings))))


def to_toml(settings: Settings) -> str:
    """Return the settings as a TOML text that `resolve` reads back; unset values stand as comments."""
    lines = []
    for key, value in dataclasses.asdict(settings).items():
        if isinstance(value, dict):
            lines.append(f"\n[{key}]")
            lines += [
                f"# {name} is unset" if item is None else f"{name} = {_toml(item)}" for name, item in value.items()
            ]
        else:
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def short_digest(settings: Any) -> str:
    """Return 16 hexadecimal digits that change when any value in a dataclass or mapping changes."""
    content = settings if isinstance(settings, Mapping) else to_dict(settings)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


INDIFFERENT = {
    "training": ("epochs", "workers", "checkpoint_minutes", "device", "threads"),
    "generator": ("convolution",),
    "data": ("layout",),
    "synthesis": ("crop", "stride", "batch", "memory_mib"),
}


def decisive(settings: Settings | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a training step does, and which epoch is the best.

    An epoch more or the stride of synthesis does not; the mode of synthesis does, as it makes the validation volumes.
    """
    content = settings if isinstance(settings, Mapping) else to_dict(settings)
    kept = {
        table: {key: value for key, value in values.items() if key not in INDIFFERENT.get(table, ())}
        for table, values in content.items()
        if table not in ("preset", "split")
    }
    return kept


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in words where two `decisive` settings differ; empty where they do not."""
    return "; ".join(
        f"{table}.{key} = {found.get(table, {}).get(key)!r}, now {value!r}"
        for table, values in wanted.items()
        for key, value in values.items()
        if found.get(table, {}).get(key) != value
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            "the settings file cannot be read", where=path, found=error, expected="a TOML file"
        ) from error


def _toml(value: Any) -> str:
    # Numbers, booleans and lists are written alike in JSON and TOML. Strings too, but for surrogates and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _near(name: str, known: list[str]) -> str | None:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else None


def _merge(current: Any, values: Mapping[str, Any], origin: str, prefix: str = "") -> Any:
    hints = typing.get_type_hints(type(current))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if key not in hints:
            raise SettingsError(
                "unknown setting",
                where=f"{origin}: {name}",
                expected=f"one of {', '.join(hints)}",
                do=_near(key, list(hints)),
            )
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise SettingsError("not a table", where=f"{origin}: {name}", found=repr(value))
            changes[key] = _merge(getattr(current, key), value, origin, f"{name}.")
        else:
            changes[key] = _typed(value, hints[key], f"{origin}: {name}")
    return dataclasses.replace(current, **changes)


def _typed(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if option is type(None) and value is None:
            return None
        if origin is Literal and value in typing.get_args(option):
            return value
        if origin is tuple and isinstance(value, (list, tuple)):
            parts = typing.get_args(option)
            if len(parts) == len(value):
                return tuple(_typed(item, part, where) for item, part in zip(value, parts, strict=True))
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    raise SettingsError("a value of the wrong kind", where=where, found=repr(value), expected=_describe(hint))


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not isinstance(hint, types.UnionType) else str(hint)


_POSITIVE = {
    "split": ("train",),
    "prepare": ("shape", "spacing_mm"),
    "training": (
        *("epochs", "steps_per_epoch", "batch", "patch", "learning_rate"),
        *("validation_stride", "checkpoint_minutes", "threads"),
    ),
    "context": ("stages", "stride"),
    "synthesis": ("stride", "batch", "memory_mib"),
}


_NOT_NEGATIVE = {
    "split": ("validation", "test", "seed"),
    "generator": ("slope",),
    "discriminator": ("slope",),
    "loss": ("adversarial", "l1", "gdl"),
    "training": ("min_head", "beta1", "beta2", "seed", "workers"),
}

_BELOW_ONE = ("beta1", "beta2")


def is_contrast(name: object) -> bool:
    """Return whether a contrast's name may stand in a file name: not blank, no separator of paths, nothing unprintable.

    Example:
        >>> is_contrast("T2w"), is_contrast("../T2w")
        (True, False)
    """
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and not {"/", "\\"} & set(name)


def _validate(settings: Settings) -> None:
    for contrast in ("source", "target"):
        name = getattr(settings.data, contrast)
        if not is_contrast(name):
            raise SettingsError(
                "not the name of a contrast",
                where=f"data.{contrast}",
                found=repr(name),
                expected="a BIDS suffix such as T2w, or a CSV column, without / and \\",
            )
    for table, keys in _NOT_NEGATIVE.items():
        for key in keys:
            if getattr(getattr(settings, table), key) < 0:
                found = getattr(getattr(settings, table), key)
                raise SettingsError("must not be negative", where=f"{table}.{key}", found=found)
    for key in _BELOW_ONE:
        if getattr(settings.training, key) >= 1:
            raise SettingsError("must be below 1", where=f"training.{key}", found=getattr(settings.training, key))
    if settings.training.min_head > 1:
        raise SettingsError("not a share", where="training.min_head", found=settings.training.min_head)
    for table, keys in _POSITIVE.items():
        for key in keys:
            value = getattr(getattr(settings, table), key)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number <= 0:
                    raise SettingsError("must be positive", where=f"{table}.{key}", found=value)
    if settings.training.patch % 8 and settings.loss.adversarial > 0:
        raise SettingsError(
            "the discriminator halves a patch three times",
            where="training.patch",
            found=settings.training.patch,
            expected="a multiple of 8",
        )
    if settings.training.margin < 0:
        raise SettingsError("must not be negative", where="training.margin", found=settings.training.margin)
    if not 0 < settings.prepare.percentile <= 100:
        raise SettingsError("not a percentile", where="prepare.percentile", found=settings.prepare.percentile)
    strides = {
        "synthesis.stride": settings.synthesis.stride,
        "context.stride": settings.context.stride,
        "training.validation_stride": settings.training.validation_stride,
    }
    for name, stride in strides.items():
        if stride > settings.training.patch:
            raise SettingsError(
                "a stride larger than the patch leaves voxels out",
                where=name,
                found=stride,
                expected=f"at most training.patch = {settings.training.patch}",
            )
    if settings.context.stages > 1 and settings.context.training_input == "out_of_fold":
        if settings.context.folds < 2:
            raise SettingsError("out of fold needs two folds", where="context.folds", found=settings.context.folds)
        if settings.context.input == "patch":
            raise SettingsError(
                "the context of patches comes from the first stage itself, which trained on them",
                where="context.training_input",
                found="out_of_fold with context.input = patch",
                expected="in_sample",
                do="Set context.training_input to in_sample, or context.input to volume.",
            )
