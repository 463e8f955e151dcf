"""Calls of the command line as values that can be repeated, and how hypothesis draws them."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from harness import files
from hypothesis import strategies as st

from unscanned.schema import Schema
from unscanned.settings import Settings, Synthesis

Draw = typing.Callable[[st.SearchStrategy[typing.Any]], typing.Any]


@dataclass(frozen=True)
class Call:
    """One call of the command line and what surrounds it.

    Attributes:
        words: What follows the program's name; @ stands for the folder of the call.
        faults: Of inputs: (name below @/in, which of its files, kind, seed).
        out: What stands at the output's place before; see `files.OUTPUTS`.
        environment: Variables; None unsets one.
        user: root; nobody, who owns the outputs only; powerless, which is root bound to what the modes of files allow
            (another user may not be able to start this interpreter); or self, where the harness is not run by root.
        stdout: Where standard output leads: file, full (a full disk) or closed (a pipe that nobody reads).
        cwd: home, or gone for a working folder that was removed.
        is_process: Whether it is a process of its own, or a fork of this one.
    """

    words: tuple[str, ...]
    faults: tuple[tuple[str, int, str, int], ...] = ()
    out: str = "new"
    environment: tuple[tuple[str, str | None], ...] = ()
    user: str = "root"
    stdout: str = "file"
    cwd: str = "home"
    is_process: bool = False

    @property
    def verb(self) -> str:
        """The first word, or none where that is no verb."""
        return self.words[0] if self.words and self.words[0] in WEIGHTS else "none"

    @property
    def inputs(self) -> list[str]:
        """Names below @/in that the words lead to."""
        named = {word.split("@/in/", 1)[1].split("/")[0] for word in self.words if "@/in/" in word}
        named |= {"dataset"} if "table.csv" in named else set()
        return sorted(named | ({"dataset", "run"} if "jobs" in named else set()))


AS_ROOT = os.geteuid() == 0

ODD = (
    "", " ", "0", "-1", "1", "2", "3", "7", "8", "16", "0.5", "1e9", "1e-9", "1e400", "nan", "inf", "-inf", "-0",
    "2147483648", "18446744073709551616", "9" * 40, "x", "None", "null", "true", "no", "auto", "cpu", "cuda", "cuda:99",
    "mps", "PD", "T2", "T2w", "T1", "pd", "../x", "/", "a/b", "\x1b[31mred", "a\nb", "é", "\udcff", "日本", "=", "--",
    "-", "[", "{}", "[1,2]", "%s", "${HOME}", "x" * 300, "0x10", "1_0", "１", "@/in/nothing", "nie", "small", "unet",
    "/dev/null", ".", "..",
)  # fmt: skip
"""Values that an option may be given, right for one and wrong for the other."""

SAFE = ("0", "-1", "1", "2", "x", "nan", "1.5", "", "18446744073709551616x")
"""Values of options with which a call may rightly take very long."""

LONG = {"epochs", "steps-per-epoch", "workers", "subjects", "per-anatomy", "repeats", "steps", "edge", "volumes"}
"""Options of this kind: a large number is a large task, not a fault."""

ENVIRONMENTS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("HOME", (None, "", "/proc/none", "/dev/null")),
    ("COLUMNS", ("1", "0", "-5", "x", "100000", "20")),
    ("LINES", ("1",)),
    ("TERM", ("dumb", "", None, "xterm-256color", "nonsense")),
    ("TMPDIR", ("/proc/none", "@/in/scan.nii.gz", "", "/dev/null")),
    ("NO_COLOR", ("1",)),
    ("FORCE_COLOR", ("1",)),
    ("TZ", ("Nowhere/None", "")),
    ("XDG_CACHE_HOME", ("/proc/none",)),
    ("XDG_DATA_HOME", ("/proc/none", "/dev/null", "", "@/in/run")),
    ("USER", (None, "")),
)
"""Variables that are read while a verb runs."""

START_ENVIRONMENTS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("LC_ALL", ("C", "POSIX", "nonsense", "C.UTF-8")),
    ("LANG", ("C",)),
    ("PYTHONUTF8", ("0",)),
    ("PYTHONIOENCODING", ("ascii", "latin-1")),
    ("MPLBACKEND", ("nonsense", "TkAgg", "", "module://none")),
    ("MPLCONFIGDIR", ("/proc/none", "/dev/null")),
    ("OMP_NUM_THREADS", ("0", "-1", "x", "", "2")),
    ("MKL_NUM_THREADS", ("x",)),
    ("PYTHONOPTIMIZE", ("1", "2")),
    ("PYTHONWARNINGS", ("ignore", "nonsense")),
    ("PYTHONHASHSEED", ("1",)),
    ("PYTHONDONTWRITEBYTECODE", ("1",)),
    ("CUDA_VISIBLE_DEVICES", ("", "-1", "7", "x")),
    ("http_proxy", ("http://127.0.0.1:9",)),
)
"""Variables that are read once, at the start of a process."""


def _names(schema: type[Schema], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in schema.model_fields.items():
        hint, word = field.annotation, name.replace("_", "-")
        if isinstance(hint, type) and issubclass(hint, Schema):
            names += _names(hint, f"{prefix}{word}.")
        elif name != "preset":
            names.append(f"--{prefix}{word}")
    return names


SETTINGS = tuple(_names(Settings))
DATASETS = ("@/in/dataset", "@/in/table.csv", "@/in/ixi")
SYNTHETIC = "@/in/synthetic/sub-001/anat/sub-001_desc-synthetic_T2w.nii.gz"
DERIVED = "@/in/derived/sub-scan/anat/sub-scan_desc-synthetic_T2w.nii.gz"
ANYTHING = (
    "@/in/nothing", "@/in/dataset", "@/in/dataset/sub-001", "@/in/run", "@/in/run/model", "@/in/models",
    "@/in/synthetic", "@/in/evaluation", "@/in/dicom", "@/in/labels", "@/in/scan.nii.gz", "@/in/series.nii.gz",
    "@/in/holes.nii.gz", "@/in/settings.toml", "@/in/split.json", "@/in/table.csv", "@/in/cohort",
    "@/in/jobs", "@/in", "", "/dev/null", "/proc/self/mem",
)  # fmt: skip
"""What may be given where a verb expects something else."""

TINY = ("--settings", "@/in/settings.toml")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "check": ("--source", "--target", "--layout", "--resample", "--json", "--preset", "--propose", "--measure-s"),
    "prepare": (*[name for name in SETTINGS if name.startswith(("--data.", "--prepare."))], "--preset", "--dry-run"),
    "train": (*SETTINGS, "--preset", "--dry-run"),
    "synthesize": (
        *_names(Synthesis), "--device", "--threads", "--overwrite", "--force", "--to", "--models-in", "--emit",
        "--cluster",
    ),
    "take": ("--task", "--tasks", "--lost-after-s"),
    "audit": ("--json", "--cluster"),
    "verify": ("--model", "--scan", "--device", "--threads"),
    "dicom": ("--scan", "--series", "--echo-time-ms", "--force"),
    "mend": ("--volume-index", "--replace-nonfinite"),
    "evaluate": ("--source", "--target", "--layout", "--split", "--resample", "--json"),
    "report": ("--runs", "--cases", "--limit-mb"),
    "view": ("--limit-mb", "--no-open"),
    "reproduce": (*SETTINGS, "--arms", "--json", "--dry-run"),
    "demo": ("--subjects", "--seed"),
    "simulate": ("--labels", "--subjects", "--per-anatomy", "--contrasts", "--seed", "--shape", "--spacing-mm"),
    "fetch": ("--contrasts", "--keep-archive", "--sha256", "--name"),
    "models": ("--json", "--models-in"),
    "benchmark": (
        "--device", "--threads", "--network", "--edge", "--repeats", "--batch", "--steps", "--patches", "--volumes",
        "--seed", "--json", "--plot",
    ),
    "none": ("--help", "--version", "--install-completion", "--x"),
}  # fmt: skip
"""The options of each verb."""

FLAGS = {"--resample", "--dry-run", "--overwrite", "--force", "--replace-nonfinite", "--keep-archive", "--no-open"}

WEIGHTS = {
    "check": 28, "prepare": 14, "train": 5, "synthesize": 20, "take": 8, "audit": 8, "verify": 16, "dicom": 16,
    "mend": 34, "evaluate": 18, "report": 6, "view": 8, "reproduce": 3, "demo": 1, "simulate": 8, "fetch": 10,
    "models": 4, "benchmark": 8, "none": 5,
}  # fmt: skip
"""How often each verb is drawn: those that take long less often."""


def _base(draw: Draw, verb: str, out: str, is_process: bool) -> list[str]:
    """Return the words of a call that would be right."""
    dataset = draw(st.sampled_from(DATASETS))
    match verb:
        case "check":
            return [dataset, "--measure-s", "0"]
        case "prepare" | "train":
            return [dataset, "-o", out, *TINY]
        case "synthesize":
            scans = draw(st.lists(st.sampled_from((*DATASETS, "@/in/scan.nii.gz")), min_size=1, max_size=2))
            shelf = ["--models-in", "@/in/models"]
            ways = ["@/in/run/model", *scans], ["pd-t2", *scans, *shelf], [*scans, "--to", "T2", *shelf]
            script = draw(st.sampled_from(([], [], ["--emit", "slurm", "@/out/jobs"])))
            return [*draw(st.sampled_from(ways)), "-o", out, "--force", *script]
        case "take":
            return ["@/in/jobs"]
        case "audit":
            return ["@/in/cohort"]
        case "verify":
            scan = "@/in/dataset/sub-001/anat/sub-001_PDw.nii.gz"
            return [SYNTHETIC, "--model", "@/in/run/model", "--scan", scan]
        case "dicom":
            return [DERIVED, "@/in/dicom", "-o", out, "--scan", "@/in/scan.nii.gz"]
        case "mend":
            scan = draw(st.sampled_from(("series", "holes", "scan")))
            own = {"series": ["--volume-index", "1"], "holes": ["--replace-nonfinite"], "scan": []}[scan]
            return [f"@/in/{scan}.nii.gz", "-o", f"{out}.nii.gz", *own]
        case "evaluate":
            return [dataset, "@/in/synthetic", "-o", out]
        case "report":
            return ["@/in/evaluation", "-o", f"{out}.html", "--runs", "a=@/in/run"]
        case "view":
            return ["@/in/scan.nii.gz", SYNTHETIC, "-o", f"{out}.html", "--no-open"]
        case "reproduce":
            return [dataset, "-o", out, *TINY, "--arms", "demo"]
        case "demo":
            return ["-o", out, *(["--subjects", "6"] if is_process else [])]  # a right one is small in forks only
        case "simulate":
            labels = draw(st.sampled_from(([], ["--labels", "@/in/labels"])))
            return ["-o", out, "--subjects", "1", "--shape", "12", "12", "12", "--spacing-mm", "16", *labels]
        case "fetch":
            return ["ixi", "-o", out]
        case "models":
            return draw(st.sampled_from(([], ["--models-in", "@/in/models"], ["pd-t2", "--models-in", "@/in/models"])))
        case "benchmark":
            sizes = ["--edge", "32", "--repeats", "1", "--batch", "1", "--steps", "1", "--patches", "1"]
            odd = draw(st.sampled_from(("x", "-1", "0", "nan")))  # a right one takes long; see below
            return ["--network", "small", *sizes, "--volumes", "32", "--json", f"{out}.json", "--threads", odd]
        case _:
            return []


def _option(draw: Draw, verb: str, out: str) -> list[str]:
    """Return one option with a value that may be right, odd or extreme."""
    name = draw(st.sampled_from(OPTIONS[verb]))
    if name in FLAGS:
        return [name]
    last = name.rsplit(".", 1)[-1].removeprefix("--")
    if last in ("json", "plot"):
        kinds = (out, f"{out}.png", f"{out}/a/b.json", "/dev/stdout", "/proc/x", "", "@/in/scan.nii.gz/x", "@/in")
        return [name, draw(st.sampled_from(kinds))]
    if last == "emit":
        folders = ("@/out/jobs", out, f"{out}/a/b", "/dev/null", "/proc/x", "", "@/in/scan.nii.gz/x")
        return [name, draw(st.sampled_from(("slurm", "slurm", "pbs", ""))), draw(st.sampled_from(folders))]
    if last == "cluster":  # one that starts takes long
        return [name, draw(st.sampled_from(("locl", "local:0", "local:x", "slurm:-1", "tcp://", "", "\x1b[31m")))]
    if last in ("model", "models-in", "scan", "labels", "split", "runs", "file", "start"):
        return [name, draw(st.sampled_from(ANYTHING))]
    if last == "preset":
        return [name, draw(st.sampled_from(("adv", "adv-gdl", "resgan", "resgan-acm", "unet", "demo", *ODD)))]
    pool = SAFE if last in LONG else ODD
    if last in ("shape", "contrasts", "arms", "patches"):
        return [name, *draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))]
    value = draw(st.sampled_from(pool))
    return [f"{name}={value}"] if draw(st.booleans()) else [name, value]


@st.composite
def calls(draw: Draw, *, is_process: bool = False) -> Call:
    """Draw a call: mostly right words with few things wrong, since a call that is all wrong ends at the first."""
    verb = draw(st.sampled_from([verb for verb, weight in WEIGHTS.items() for _ in range(weight)]))
    kind = draw(st.one_of(st.just("new"), st.sampled_from(files.possible_outputs())))
    out = files.OUTPUTS[kind]
    words = _base(draw, verb, out, is_process)
    rate = draw(st.integers(0, 7))  # of eight calls, three have their words and inputs all right
    if rate in (1, 2):
        for _ in range(draw(st.integers(1, 3))):
            words += _option(draw, verb, out)
    elif rate == 3 and words:
        place = draw(st.integers(0, len(words) - 1))
        if words[max(0, place - 1)] == "-o":
            kind = draw(st.sampled_from(files.possible_outputs()))
            words[place] = files.OUTPUTS[kind]
        elif words[place] != "-o":
            words[place] = draw(st.sampled_from(ANYTHING + ODD))
    elif rate == 4 and words:
        place = draw(st.integers(0, len(words) - 1))
        words = words[:place] + words[place + draw(st.integers(1, 2)) :]
    if verb != "none":
        words = [verb, *words]
    else:
        words = draw(st.lists(st.sampled_from((*OPTIONS["none"], *WEIGHTS, *ODD)), max_size=2))
        if words and words[0] in WEIGHTS:
            words = [words[0], "--help"]
    faults: list[tuple[str, int, str, int]] = []
    named = [name for name in Call(tuple(words)).inputs if name != "jobs"]  # a flipped bit is another valid path
    if rate in (5, 6) and named:
        for _ in range(draw(st.integers(1, 2))):
            fault = draw(st.sampled_from(sorted(files.FAULTS)))
            faults.append(
                (draw(st.sampled_from(named)), draw(st.integers(0, 40)), fault, draw(st.integers(0, 2**32 - 1)))
            )
    pool = ENVIRONMENTS + (START_ENVIRONMENTS if is_process else ())
    environment = []
    if draw(st.integers(0, 3)) == 0:
        for name, values in draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True)):
            environment.append((name, draw(st.sampled_from(values))))
    other = "powerless" if is_process else "nobody"
    if verb == "benchmark" and not is_process:  # its own processes need the interpreter, which nobody may not read
        other = "root"
    return Call(
        words=tuple(words),
        faults=tuple(faults),
        out=kind,
        environment=tuple(environment),
        user=draw(st.sampled_from(("root", "root", other))) if AS_ROOT else "self",
        stdout=draw(st.sampled_from(("file",) * 6 + (("full", "closed") if is_process else ()))),
        cwd=draw(st.sampled_from(("home",) * 9 + ("gone",))),
        is_process=is_process,
    )
