"""Settings: one frozen tree of typed tables, filled from a preset, a TOML file and options, in that order.

A field's declaration is all that there is to say of it: type, bounds, default, and its meaning in the string below.
Options of the command line, their help, docs/settings.md, what is refused and what a run's identity holds follow from
it. A default never changes once released: it stands for what older versions, which did not have the field, have done.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, PositiveInt, field_validator
from pydantic.fields import FieldInfo

from unscanned.errors import SettingsError, UnscannedError, quoted
from unscanned.files import read_text
from unscanned.schema import Schema, near, read

__all__ = [
    "Augmentation",
    "Context",
    "Data",
    "Discriminator",
    "Generator",
    "Loss",
    "Prepare",
    "Settings",
    "Simulated",
    "Split",
    "Spread",
    "Synthesis",
    "Training",
    "WRITTEN_BY",
    "check",
    "decisive",
    "difference",
    "is_contrast",
    "merge",
    "preset_names",
    "read_settings",
    "read_spread",
    "resolve",
    "to_dict",
    "to_toml",
    "toml_of",
    "without_effect",
]

Layout = Literal["auto", "bids", "ixi", "csv"]
Precision = Literal["float32", "tf32", "bfloat16"]
Initialization = Literal["xavier_uniform", "xavier_normal", "kaiming_normal", "normal", "pytorch"]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e12)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
OwnOptions = dict[str, bool | int | float | str | list[int]]

WRITTEN_BY = "# Settings of unscanned "
"What a TOML file of settings begins with, the release behind it."

INDIFFERENT: dict[str, Any] = {"decides": False}
"Of a field that changes neither what a training step does nor which epoch is the best: no part of a run's identity."


class Data(Schema):
    """Which contrasts, and how the dataset is laid out."""

    source: str = "PD"
    "Contrast that will be at hand (BIDS suffix with or without its w, or a CSV column)."
    target: str = "T2"
    "Contrast to synthesize."
    layout: Layout = Field("auto", json_schema_extra=INDIFFERENT)
    "How subjects are found; auto looks at the folder."

    @field_validator("source", "target")
    @classmethod
    def _names_a_contrast(cls, name: str) -> str:
        if not is_contrast(name):
            raise ValueError("not the name of a contrast: a BIDS suffix such as T2w, or a CSV column, without / and \\")
        return name


class Prepare(Schema):
    """The model's grid and intensity scale."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((224, 224, 128), strict=False)
    "Voxels along (i, j, k) in RAS+ that training volumes are cropped or padded to, around the head's centre."
    spacing_mm: float | None = Field(None, gt=0, le=100)
    "Isotropic voxel size to resample to; unset keeps each scan's own."
    resample: bool = False
    "Resample the target onto the source's grid where the two differ; otherwise such a pair is refused."
    percentile: float = Field(99.9, gt=0, le=100)
    "Percentile of the intensities inside the head that becomes 1."
    averages: bool = False
    "Whether a voxel of spacing_mm averages the smaller ones of a scan, as a scanner's would; else it is interpolated."
    precision: Literal["float32", "float16"] = "float32"
    "Of the prepared volumes on disk; float16 takes half the space, with an error of at most 1/2048 of an intensity."


class Split(Schema):
    """Subjects to train on, to choose the epoch with, and to test on. Sessions of a subject stay together."""

    train: int = Field(60, gt=0, le=10**9)
    "Number of training subjects."
    validation: int = Field(3, ge=0, le=10**9)
    "Number of validation subjects."
    test: int = Field(26, ge=0, le=10**9)
    "Number of test subjects."
    seed: Seed = 0
    "Seed of the shuffle of subjects."
    file: str | None = None
    "JSON file with the lists train, validation and test; overrides the numbers."
    folds: int = Field(1, gt=0, le=10**6)
    "Parts that all subjects are divided into for a cross-validation; from 2 on, train and test take no numbers."
    fold: int = Field(1, gt=0, le=10**6)
    "The part to test on, from 1; validation subjects are drawn from the others, and all that are left train."


class Generator(Schema):
    """The network that makes the target."""

    name: str = "nie"
    "Architecture: nie (the reference's), small or unet, or another that unscanned.models.generators names."
    options: OwnOptions = Field({})
    "Options of that architecture's own; a list is typed as '[1, 1, 2]'."
    residual: bool = False
    "Add the source to the output of the last convolution (ResGAN)."
    slope: float = Field(0.2, ge=0, le=1e3)
    "Negative slope of LeakyReLU."
    initialization: Initialization = "xavier_uniform"
    "How the weights begin."
    output: Literal["linear", "tanh", "batch_norm"] = "linear"
    "What follows the last convolution; in a ResGAN before the source is added."
    convolution: Literal["auto", "plain", "spectral"] = Field("auto", json_schema_extra=INDIFFERENT)
    "Arithmetic of the convolutions, plain or, where it is faster, another (auto); the function is the same."


class Discriminator(Schema):
    """The network that tells acquired from synthetic."""

    name: str = "nie"
    "Architecture: nie (the reference's) or small, or another that unscanned.models.discriminators names."
    options: OwnOptions = Field({})
    "Options of that architecture's own; a list is typed as '[1, 1, 2]'."
    slope: float = Field(0.2, ge=0, le=1e3)
    "Negative slope of LeakyReLU."
    initialization: Initialization = "xavier_uniform"
    "How the weights begin."
    spectral_norm: bool = False
    "Divide each layer's weights by their largest singular value, in the place of batch norm; bounds how steep it is."


class Loss(Schema):
    """Weights of the generator's loss."""

    adversarial: Weight = 0.5
    "Weight of the adversarial term; 0 trains without a discriminator."
    criterion: Literal["cross_entropy", "least_squares", "hinge"] = "cross_entropy"
    "Of the adversary: cross entropy as in the reference, least squares (LSGAN) or hinge."
    l1: Weight = 1.0
    "Weight of the L1 term."
    gdl: Weight = 1.0
    "Weight of the gradient difference term."
    ssim: Weight = 0.0
    "Weight of 1 - SSIM, in unit scale with a data range of 1."
    reduction: Literal["sum", "mean"] = "sum"
    "Over voxels, for all terms but the adversarial: sum (the formulas are norms) or mean. Over the batch: mean."
    outside: Share = 1.0
    "What is left of the synthetic patch's error outside the head before any loss sees it; 0 trains inside alone."
    adversarial_after: int = Field(0, ge=0, le=10**12)
    "Steps that the other terms have to themselves before the adversary joins."
    gradient_penalty: Weight = 0.0
    "Weight of the discriminator's squared gradient at acquired patches (R1), which keeps its slope there small."
    on_collapse: Literal["end", "regression"] = "end"
    "What a training does whose adversary collapses: end, or go on with the other terms alone (regression)."

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term by its name."""
        return {key: value for key, value in self if isinstance(value, float) and key not in _NO_TERMS}


class Training(Schema):
    """Adversarial training."""

    epochs: int = Field(42, gt=0, le=10**9, json_schema_extra=INDIFFERENT)
    "Passes over the training patches."
    steps_per_epoch: int | None = Field(None, gt=0, le=10**9)
    "Steps that count as an epoch; unset means all patches once."
    batch: int = Field(7, gt=0, le=10**6)
    "Patches a step."
    accumulate: int = Field(1, gt=0, le=10**6)
    "Parts that the patches of a step pass through the networks in, for less memory; batch norm then sees a part alone."
    offload: bool = Field(False, json_schema_extra=INDIFFERENT)
    "On a GPU, keep what the backward pass needs in the host's memory meanwhile: the same result in less, but slower."
    patch: int = Field(32, gt=0, le=1024)
    "Edge of a cubic patch, in voxels."
    margin: int = Field(0, ge=0, le=1024)
    "Voxels around each patch that the generator sees and no loss does; from its reach on, 29 of nie, for mode volume."
    min_head: Share = 0.0
    "Share of a patch that must lie inside the head for it to be trained on; 0 keeps all patches."
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    "Optimizer of both networks."
    learning_rate: float = Field(1e-4, gt=0, le=1e6)
    "Its learning rate, from which the schedule goes down."
    discriminator_rate: float = Field(1.0, gt=0, le=1e6)
    "The discriminator's learning rate, as a share of the generator's."
    schedule: Literal["constant", "cosine"] = "constant"
    "Learning rate over the steps: constant, or half a cosine down to final_rate, whose length is the training's."
    warmup_steps: int = Field(0, ge=0, le=10**9)
    "Steps at the beginning over which the learning rate rises from 0."
    final_rate: Share = 0.0
    "Share of the learning rate that the cosine ends at."
    weight_decay: float = Field(0.01, ge=0, le=1e3)
    "Decoupled weight decay of adamw; the other optimizers have none."
    clip_norm: float | None = Field(None, gt=0, le=1e12)
    "Norm that each network's gradient is cut to; unset leaves it."
    average: float = Field(0.0, ge=0, lt=1)
    "Decay a step of the average of the generator's weights, which is validated and becomes the model; 0: no average."
    beta1: float = Field(0.5, ge=0, lt=1)
    "Adam's decay of the first moment; the momentum of rmsprop and sgd."
    beta2: float = Field(0.999, ge=0, lt=1)
    "Adam's decay of the second moment; rmsprop's decay of the squares."
    order: Literal["discriminator_first", "generator_first"] = "discriminator_first"
    "Which network takes its step first; the other's loss then sees it changed."
    seed: Seed = 0
    "Seed of the weights and of the order of patches."
    workers: int = Field(0, ge=0, le=1024, json_schema_extra=INDIFFERENT)
    "Processes that cut patches ahead of time; the result does not depend on it."
    validation_stride: int = Field(32, gt=0)
    "Stride of the reconstruction that chooses the best epoch."
    checkpoint_minutes: float = Field(5.0, gt=0, le=1e6, json_schema_extra=INDIFFERENT)
    "Minutes between checkpoints within an epoch; one is always written at its end."
    device: str = Field("auto", json_schema_extra=INDIFFERENT)
    "auto, cpu, cuda or cuda:N."
    devices: int = Field(1, gt=0, le=1024, json_schema_extra=INDIFFERENT)
    "Devices of this host that share the patches of a step: GPUs, or processes on a CPU."
    threads: int | None = Field(None, gt=0, le=4096, json_schema_extra=INDIFFERENT)
    "CPU threads; unset leaves it to PyTorch."
    precision: Precision = "float32"
    "Arithmetic of the networks: float32, tf32 (CUDA) or bfloat16, where the device has it. Weights stay float32."
    start: str | None = Field(None, json_schema_extra=INDIFFERENT)
    "Model whose weights the generator starts from: a name that unscanned models lists, or a folder; unset draws them."
    keep: float = Field(0.0, ge=0, lt=1)
    "Share of the start's weights in the average that becomes the model: more forgets less (Wortsman et al. 2022)."


class Augmentation(Schema):
    """What is drawn anew for each training patch. 0 leaves all as it is.

    A training refuses a strength that leaves nothing of a patch: `intensity` above 1.6, a power of 5, by which two
    thirds of a head fall below a tenth; `field` above 0.9, which dims to a tenth, where a head ends; `noise` above 0.5,
    which is then fifteen sixteenths of the variance inside a head; `blur` above an eighth of training.patch, and
    `resolution` above a quarter. Each is the largest that is drawn.
    """

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    "Largest shift of a patch from its place on the grid of patches, as a share of its edge; 0.5 reaches every place."
    flip: Share = 0.0
    "Probability that a patch is mirrored left to right."
    intensity: Annotated[float, Field(ge=0, le=2)] = 0.0
    "Strength of a curve of the source's intensities: unit scale to the power of e^u, u between minus and plus this."
    field: Annotated[float, Field(ge=0, lt=1)] = 0.0
    "Largest change by a smooth receive field, which source and target share, as a share of the intensity."
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    "Largest standard deviation of Rician noise added to the source, in unit scale."
    blur: Annotated[float, Field(ge=0, le=64)] = 0.0
    "Largest sigma of a Gaussian that the source is blurred with, in voxels."
    resolution: Annotated[float, Field(ge=0, le=64)] = 0.0
    "Largest thickness of slices, in voxels, that the source is averaged to across a random axis; up to 1 leaves it."


def _range_within(least: float, most: float) -> AfterValidator:
    """Return the check of a lowest and a highest value."""

    def is_a_range(given: tuple[float, float]) -> tuple[float, float]:
        if not least <= given[0] <= given[1] <= most:
            raise ValueError(f"not a range: {least:g} <= low <= high <= {most:g}")
        return given

    return AfterValidator(is_a_range)


class Spread(Schema):
    """What the scanner of a subject with wide physics is drawn from; the defaults are the spread of real scanners.

    `simulate` and `Stream` take a mapping of some of these keys.
    """

    noise: Annotated[tuple[float, float], _range_within(1e-6, 1)] = Field((0.012, 0.10), strict=False)
    "Range of the SD of the noise beside white matter, 1e-6 to 1; a third more in T2w and FLAIR, less in PDw and T1w."
    receive: Annotated[tuple[float, float], _range_within(0, 1)] = Field((0.005, 0.20), strict=False)
    "Range of the standard deviation of the logarithm of the receive field, 0 to 1, which is cut at twice that."
    thickness_mm: Annotated[tuple[float, float], _range_within(0.1, 50)] = Field((0.8, 6.0), strict=False)
    "Range of the thickness of slices, 0.1 to 50 mm."
    volumetric: Share = 0.45
    "Share of subjects that are scanned as volumes with edges of 0.8 to 1.6 mm."
    deformation_mm: float = Field(3.5, ge=0, le=20)
    "Standard deviation of the smooth displacement of an anatomy along each axis."
    tilt_deg: float = Field(3.0, ge=0, le=10)
    "Standard deviation of a head's rotation about each axis of its slices, cut at 7/3 of it; more for oblique slices."
    brain: Share = 0.35
    "Share of subjects with the brain alone."
    defaced: Share = 0.2
    "Share of subjects without a face, or all that `brain` leaves if that is less; the others are whole heads."
    cropped: Share = 0.25
    "Share of subjects whose field of view does not hold the whole head."
    ghosts: Share = 0.3
    "Share of images with ghosts of motion, of up to 3 % of the signal."


class _Drawn(Schema):
    share: Share = 0.0
    "Share of the training patches that come from simulated pairs."
    labels: str | None = Field(None, json_schema_extra=INDIFFERENT)
    "Folder of whole-head label maps; unset takes heads of the package's own."
    seed: Seed = 0
    "Seed of all that is drawn."
    pool: int = Field(8, gt=0, le=1000)
    "Pairs that are at hand at a time; each takes 9 bytes a voxel of the grid."
    every: int = Field(10, gt=0, le=10**9)
    "Steps after which a new pair takes the place of the oldest."


class Simulated(Spread, _Drawn):  # in this order the fields of _Drawn come first
    """Pairs with wide physics that are drawn while training, beside the dataset's, and never seen twice."""


class Context(Schema):
    """The auto-context chain."""

    stages: int = Field(1, gt=0, le=100)
    "Generators in the chain; each after the first also sees the previous one's output."
    input: Literal["volume", "patch"] = "volume"
    "What the next stage sees of the previous: its reconstructed volume, or (in_sample) its output on the same patch."
    training_input: Literal["out_of_fold", "in_sample"] = "out_of_fold"
    "Whether a training subject's context comes from a model that did not train on it."
    folds: int = Field(2, le=10_000)
    "Number of folds for out_of_fold."
    stride: int = Field(8, gt=0)
    "Stride of the reconstruction that gives the context of training volumes."


class Synthesis(Schema):
    """How a volume is made: averaged from overlapping patches, or whole."""

    mode: Literal["patches", "volume"] = "patches"
    "patches averages overlapping patches (the reference); volume maps it whole, which is another function."
    crop: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=INDIFFERENT)
    "Map at most prepare.shape voxels around the head and leave the rest at 0; auto: where they hold the whole head."
    stride: int = Field(8, gt=0, json_schema_extra=INDIFFERENT)
    "Voxels between neighbouring patches along each axis, in mode patches."
    clip: Literal["none", "minimum"] = Field("none", json_schema_extra=INDIFFERENT)
    "minimum raises voxels below the smallest of the training targets to it (to 0 where the model does not know it)."
    blend: Literal["equal", "gaussian"] = "equal"
    "Weights of overlapping patches: equal (the reference), or gaussian, highest in the middle of a patch."
    mirror: bool = Field(False, json_schema_extra=INDIFFERENT)
    "Map the scan's mirror image, left for right, too, and take the mean of both: twice the time."
    detail: Literal["none", "source"] = Field("none", json_schema_extra=INDIFFERENT)
    "Way back from prepare.spacing_mm: none is linear; source is cubic, with detail that the scan's own grid has kept."
    batch: int | None = Field(None, gt=0, le=10**6, json_schema_extra=INDIFFERENT)
    "Patches at a time; unset chooses by device. The result does not depend on it beyond rounding."
    memory_mib: int | None = Field(None, gt=0, le=2**30, json_schema_extra=INDIFFERENT)
    "MiB that mode volume may work in, which cuts the volume; unset: 1440, more if need be, or most of a GPU's memory."
    precision: Precision = "float32"
    "Arithmetic of the networks, as in training.precision."


class Settings(Schema):
    """Everything that determines a run."""

    preset: str = "resgan"
    data: Data = Data()
    prepare: Prepare = Prepare()
    split: Split = Split()
    generator: Generator = Generator()
    discriminator: Discriminator = Discriminator()
    loss: Loss = Loss()
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    simulated: Simulated = Simulated()
    context: Context = Context()
    synthesis: Synthesis = Synthesis()

    def change(self, **tables: Mapping[str, Any]) -> Settings:
        """Return these settings with some values in place of theirs, such as `change(training={"epochs": 3})`.

        Raises:
            SettingsError: As for `read_settings`.
        """
        return read_settings(tables, where="change", below=self)


def is_contrast(name: object) -> bool:
    """Return whether a contrast's name may stand in a file name: not blank, no separator of paths, nothing unprintable.

    Example:
        >>> is_contrast("T2w"), is_contrast("../T2w")
        (True, False)
    """
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and not {"/", "\\"} & set(name)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("unscanned") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def resolve(
    preset: str | None = None, file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings of a preset, overridden by a TOML file, overridden by `overrides`.

    Args:
        preset: One of `preset_names()`; None takes the one that the file names as `preset`, else resgan.
        file: A TOML file with any of the tables and keys of `Settings`.
        overrides: Nested mapping of the same shape, such as `{"training": {"epochs": 3}}`.

    Raises:
        SettingsError: Unknown preset, unreadable file, or as for `read_settings` and `check`.

    Example:
        >>> resolve("adv", overrides={"training": {"epochs": 3}}).training.epochs
        3
    """
    settings = merge(preset, file, overrides)
    check(settings)
    return settings


def merge(
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    usual: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings as `resolve` does, but without a look at whether the values exclude each other.

    Args:
        preset: As for `resolve`.
        file: As for `resolve`.
        overrides: As for `resolve`.
        usual: Preset where none is given and the file names none; None takes resgan.
        base: What stands between the preset and the file, such as what belongs to the model that a run starts from.

    Raises:
        SettingsError: Unknown preset, unreadable file, or as for `read_settings`.
    """
    where, content = ("", {}) if file is None else _read_toml(Path(file))
    if preset is None:
        preset = content.get("preset", usual or Settings().preset)
    names = preset_names()
    if preset not in names:
        raise SettingsError(
            "no such preset", where=str(preset), expected=f"one of {', '.join(names)}", do=near(str(preset), names)
        )
    text = (resources.files("unscanned") / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
    layers: list[tuple[str, Mapping[str, Any]]] = [(f"preset {preset}", {"preset": preset, **tomllib.loads(text)})]
    if base is not None:
        layers.append(("base", base))
    if file is not None:
        layers.append((where, {**content, "preset": preset}))
    layers.append(("options", overrides or {}))
    return reduce(lambda below, layer: read_settings(layer[1], where=layer[0], below=below), layers, Settings())


def read_settings(
    content: Any, *, where: str, below: Settings | None = None, error: type[UnscannedError] = SettingsError
) -> Settings:
    """Return the settings that nested mappings stand for, those of older versions included.

    Args:
        content: Any of the tables and keys of `Settings`; what is missing is as in `below`.
        where: File that it came from, for messages.
        below: What it overrides; None stands for the defaults, which are what older versions have done.
        error: What to raise.

    Raises:
        UnscannedError: Of the class `error`: an unknown key, or a value of the wrong kind or out of bounds.
    """
    if isinstance(content, Mapping):
        merged: dict[str, Any] = {} if below is None else below.model_dump(exclude_unset=True)
        for table, given in content.items():
            if isinstance(given, Mapping):
                given = {_RENAMED.get(f"{table}.{key}", key): value for key, value in given.items()}
                given = {**merged.get(table, {}), **given}
            merged[table] = given
        content = merged
    return read(Settings, content, where=where, error=error)


class _Given(Schema):
    spread: Spread


def read_spread(given: Spread | Mapping[str, Any] | None) -> Spread:
    """Return what scanners are drawn from, with the default where nothing is given.

    Raises:
        SettingsError: An unknown key, or a value of the wrong kind or out of bounds; it is called `spread.KEY`.
    """
    return read(_Given, {"spread": {} if given is None else given}).spread


def check(settings: Settings) -> None:
    """Refuse values that exclude each other. What a network does not take, it refuses itself.

    Raises:
        SettingsError: A fold that is not there or stands beside a file of subjects, a patch larger than the grid or
            smaller than the window of SSIM, a stride larger than the patch, a context that cannot be had, augmentation
            that leaves nothing of a patch, a share to keep of no weights, or a loss without a term.
    """
    _check_split(settings.split)
    _check_loss(settings.loss)
    _check_augmentation(settings.augmentation, settings.training.patch)
    context, patch = settings.context, settings.training.patch
    if patch > min(settings.prepare.shape):
        raise SettingsError(
            "a patch larger than the model's grid",
            where="training.patch",
            found=patch,
            expected=f"at most {min(settings.prepare.shape)}, the shortest edge of prepare.shape",
        )
    if settings.loss.ssim > 0 and patch < _SSIM_WINDOW:
        raise SettingsError(
            "a patch smaller than the window of SSIM",
            where="training.patch",
            found=f"{patch} with loss.ssim = {settings.loss.ssim}",
            expected=f"at least {_SSIM_WINDOW}",
        )
    if settings.training.keep > 0 and (settings.training.start is None or settings.training.average == 0):
        raise SettingsError(
            "there is nothing to keep a share of",
            where="training.keep",
            found=f"{settings.training.keep:g} without "
            + ("training.start" if settings.training.start is None else "training.average"),
            expected="0, or a model to start from and an average of the weights",
        )
    strides = {
        "synthesis.stride": settings.synthesis.stride,
        "context.stride": context.stride,
        "training.validation_stride": settings.training.validation_stride,
    }
    for name, stride in strides.items():
        if stride > patch:
            raise SettingsError(
                "a stride larger than the patch leaves voxels out",
                where=name,
                found=stride,
                expected=f"at most training.patch = {patch}",
            )
    if context.stages > 1 and context.input == "volume" and settings.simulated.share > 0:
        raise SettingsError(
            "a simulated pair has no volume of the stage before",
            where="simulated.share",
            found=f"{settings.simulated.share:g} with context.stages = {context.stages}",
            expected="0, or context.input = patch",
        )
    if context.stages > 1 and context.input == "volume":
        changing = {"intensity": 0, "field": 0, "noise": 0, "blur": 0, "resolution": 1}
        for name, none in changing.items():
            if (value := getattr(settings.augmentation, name)) > none:
                raise SettingsError(
                    "the volume of the stage before was made from the source as it is, not as a patch changes it",
                    where=f"augmentation.{name}",
                    found=f"{value:g} with context.stages = {context.stages}",
                    expected=f"{none}, or context.input = patch",
                )
    if context.stages > 1 and context.training_input == "out_of_fold":
        if context.folds < 2:
            raise SettingsError("out of fold needs two folds", where="context.folds", found=context.folds)
        if context.input == "patch":
            raise SettingsError(
                "the context of patches comes from the first stage itself, which trained on them",
                where="context.training_input",
                found="out_of_fold with context.input = patch",
                expected="in_sample",
                do="Set context.training_input to in_sample, or context.input to volume.",
            )


def _check_split(split: Split) -> None:
    if split.fold > split.folds:
        raise SettingsError(
            "there is no such fold", where="split.fold", found=split.fold, expected=f"1 to split.folds = {split.folds}"
        )
    if split.folds > 1 and split.file is not None:
        raise SettingsError(
            "a file says which subjects test, and so do folds",
            where="split.folds",
            found=f"{split.folds} with split.file = {split.file}",
            expected="one of them",
        )


def _check_augmentation(augmentation: Augmentation, patch: int) -> None:
    # The other bounds are those of what can be computed, which runs and models of before may have.
    limits = {
        "intensity": (1.6, "", "a power of 5"),
        "field": (0.9, "", "a tenth of the intensity"),
        "noise": (0.5, "", "half of the unit scale"),
        "blur": (patch / 8, f" voxels with training.patch = {patch}", "training.patch / 8"),
        "resolution": (patch / 4, f" voxels with training.patch = {patch}", "training.patch / 4"),
    }
    for name, (most, unit, meaning) in limits.items():
        value = getattr(augmentation, name)
        if value > most:
            raise SettingsError(
                "augmentation that leaves nothing of a patch",
                where=f"augmentation.{name}",
                found=f"{value:g}{unit}",
                expected=f"at most {most:g}, {meaning}",
                do=f"Lower it to {most:g} or less. It is the largest that is drawn; most patches get less.",
            )


def _check_loss(loss: Loss) -> None:
    weights = loss.weights
    if not any(weights.values()):
        raise SettingsError("every term of the loss weighs 0, so there is nothing to learn", where="loss")
    if not any(weight for name, weight in weights.items() if name != "gdl"):
        raise SettingsError(
            "the gradient difference alone leaves open how bright a voxel is and which side of an edge is brighter",
            where="loss.gdl",
            found=f"{weights['gdl']:g} with no other term",
            expected="a weight for another term too, such as loss.l1",
        )
    alone = not any(weight for name, weight in weights.items() if name != "adversarial")
    for name, value, default in (
        ("adversarial_after", loss.adversarial_after, 0),
        ("on_collapse", loss.on_collapse, "end"),
    ):
        if alone and value != default:
            raise SettingsError(
                "without its adversary the loss has no term, so there is nothing to learn",
                where=f"loss.{name}",
                found=f"{value} with no other term",
                expected=f"{default}, or a weight for another term, such as loss.l1",
            )


def without_effect(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what was set to no effect: why, and then the values by name.

    What the preset itself sets is left out, and so is what stands at its default: a run's settings.toml names all.

    Example:
        >>> without_effect(resolve("strong", overrides={"loss": {"gradient_penalty": 10.0}}))
        {'loss.adversarial = 0 trains without an adversary': {'loss.gradient_penalty': 10.0}}
    """
    plain = Settings()
    own = merge(settings.preset) if settings.preset in preset_names() else plain

    def changed(tables: Mapping[str, Iterable[str]]) -> dict[str, Any]:
        return {
            f"{table}.{key}": value
            for table, keys in tables.items()
            for key in keys
            if (value := getattr(getattr(settings, table), key))
            not in (getattr(getattr(own, table), key), getattr(getattr(plain, table), key))
        }

    reasons = (
        ("loss.adversarial = 0 trains without an adversary", settings.loss.adversarial == 0, _OF_THE_ADVERSARY),
        ("simulated.share = 0 draws no simulated pairs", settings.simulated.share == 0, _OF_THE_SIMULATED),
        ("training.schedule = constant has one rate", settings.training.schedule == "constant", _OF_THE_SCHEDULE),
        ("only adamw has it", settings.training.optimizer != "adamw", {"training": ("weight_decay",)}),
    )
    found = {why: changed(tables) for why, holds, tables in reasons if holds}
    return {why: values for why, values in found.items() if values}


def to_dict(settings: Schema) -> dict[str, Any]:
    """Return settings or one of their tables as nested dicts of JSON values."""
    return settings.model_dump(mode="json")


def to_toml(settings: Settings) -> str:
    """Return the settings as a TOML text that `resolve` reads back; unset values stand as comments."""
    return toml_of(to_dict(settings))


def toml_of(tables: Mapping[str, Any], comments: Iterable[str] = ()) -> str:
    """Return some tables and keys of `Settings` as a TOML text that `resolve` reads back, comments in front."""
    lines = [f"{WRITTEN_BY}{metadata.version('unscanned')}", *(f"# {comment}" for comment in comments)]
    for key, value in tables.items():
        lines += _toml_table(key, value) if isinstance(value, dict) else [f"{key} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def decisive(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what decides how a training step changes the weights, and which epoch is the best: a run's identity.

    An epoch more or the stride of synthesis does not, unless the learning rate depends on how many steps there will be;
    the mode of synthesis does, as it makes the validation volumes.
    What stands at its default is left out, so a setting that a later version adds changes no identity.
    """
    changed = settings.model_dump(mode="json", exclude_defaults=True, exclude={"preset", "split"})
    needs_length = settings.training.schedule != "constant"
    kept = {
        table: {
            key: value
            for key, value in values.items()
            if _field(table, key).json_schema_extra != INDIFFERENT or (needs_length and (table, key) == _LENGTH)
        }
        for table, values in changed.items()
    }
    return {table: values for table, values in kept.items() if values}


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], *, second: str = "now") -> str:
    """Return in words where two identities differ; empty where they do not. A setting left out is at its default.

    `second` is what the words call the second.
    """
    told = []
    for table in dict.fromkeys([*found, *wanted]):
        one, other = found.get(table, {}), wanted.get(table, {})
        for key in dict.fromkeys([*one, *other]):
            default = _defaults(table).get(key)
            before, now = one.get(key, default), other.get(key, default)
            if before != now:
                told.append(f"{table}.{key} = {_shown(before)}, {second} {_shown(now)}")
    return "; ".join(told)


_NO_TERMS = {"outside", "gradient_penalty"}
"Numbers of the table loss that are no weights of terms."
_OF_THE_ADVERSARY = {
    "discriminator": tuple(Discriminator.model_fields),
    "loss": ("criterion", "adversarial_after", "gradient_penalty", "on_collapse"),
    "training": ("discriminator_rate", "order"),
}
"What means nothing without one, table by table."
_OF_THE_SIMULATED = {"simulated": tuple(name for name in Simulated.model_fields if name != "share")}
_OF_THE_SCHEDULE = {"training": ("final_rate",)}
_SSIM_WINDOW = 11
_LENGTH = ("training", "epochs")
_RENAMED = {"training.context": "margin"}
"Keys of older versions, and what they are called now."


def _read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return what messages call the file, with the release that wrote it if it says so, and its content."""
    try:
        text = read_text(path)
        writer = re.match(rf"{WRITTEN_BY}(\S+)", text)
        return f"{path} (of unscanned {writer[1]})" if writer else str(path), tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(
            "the settings file cannot be read", where=path, found=error, expected="a TOML file"
        ) from error


def _toml_table(name: str, values: Mapping[str, Any]) -> list[str]:
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    plain = {key: value for key, value in values.items() if key not in inner}
    lines = [f"# {key} is unset" if value is None else f"{key} = {_toml(value)}" for key, value in plain.items()]
    tables = [line for key, value in inner.items() if value for line in _toml_table(f"{name}.{key}", value)]
    return [f"\n[{name}]", *lines, *tables]


def _shown(value: Any) -> str:
    return "unset" if value is None else quoted(value)


def _toml(value: Any) -> str:
    # Numbers, booleans and lists are written alike in JSON and TOML. Strings too, but for surrogates and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _field(table: str, key: str) -> FieldInfo:
    return cast(type[Schema], Settings.model_fields[table].annotation).model_fields[key]


def _defaults(table: str) -> dict[str, Any]:
    """Return the defaults of a table as JSON values; none where the table is no part of the settings."""
    return to_dict(getattr(Settings(), table)) if table in Settings.model_fields else {}
