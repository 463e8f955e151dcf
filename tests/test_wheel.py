"""The wheel, in an environment that has its dependencies and not this source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree without the network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT]
    subprocess.run([sys.executable, "-m", "pip", *map(str, build)], check=True, capture_output=True, text=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; the packages of this one are on its path, this source tree is not.

    A path in a .pth file is put on `sys.path` without a look at the .pth files inside it, so an editable install of
    unscanned in this environment does not come along.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    [site] = environment.glob("lib/python*/site-packages")
    theirs = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(theirs) + "\n", encoding="utf-8")
    python = environment / "bin" / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel]
    subprocess.run([sys.executable, "-m", "pip", *map(str, install)], check=True, capture_output=True, text=True)
    return environment


@pytest.fixture
def call(installed: Path, tmp_path: Path):
    """Run a program of the new environment in an empty folder, and return what it printed."""
    folder = tmp_path / "empty"
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*words: object) -> str:
        program, *arguments = map(str, words)
        command = [str(installed / "bin" / program), *arguments]
        done = subprocess.run(
            command, cwd=folder, env={**kept, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = folder
    return run


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = [path for path in (source / "unscanned").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert held == {path.relative_to(source).as_posix() for path in files}
    assert {"unscanned/py.typed", "unscanned/presets/demo.toml"} <= held


@pytest.mark.slow
def test_an_installed_wheel_works_without_the_source_tree(call, installed):
    place = Path(call("python", "-c", "import unscanned; print(unscanned.__file__)").strip())
    assert place.is_relative_to(installed)
    version = call("python", "-m", "unscanned", "--version")
    assert version == call("unscanned", "--version")
    assert "synthesize" in call("unscanned", "--help")

    tiny = [
        *(
            "--preset",
            "demo",
            "--prepare.shape",
            32,
            32,
            32,
            "--synthesis.stride",
            16,
            "--training.validation-stride",
            16,
        ),
        *("--split.train", 1, "--split.validation", 1, "--split.test", 1, "--training.epochs", 1),
        *("--training.steps-per-epoch", 2, "--training.batch", 2, "--training.patch", 16, "--training.device", "cpu"),
    ]
    calls = [
        ("simulate", "-o", "heads", "--subjects", 3, "--shape", 32, 40, 32),
        ("train", "heads", "-o", "run", *tiny, "--dry-run"),
        ("train", "heads", "-o", "run", *tiny),
        ("synthesize", "run/model", "heads", "-o", "synthetic"),
        ("evaluate", "heads", "synthetic", "-o", "evaluation", "--split", "run/split.json"),
        ("report", "evaluation", "-o", "report.html", "--runs", "run=run"),
    ]
    program = (
        "import sys\nfrom unscanned.cli import main\n"
        f"for words in {[[str(word) for word in words] for words in calls]}:\n"
        "    if code := main(words): sys.exit(f'{words}: exit code {code}')\n"
    )
    assert "[training]" in call("python", "-c", program)
    assert "<html" in (call.folder / "report.html").read_text(encoding="utf-8")[:200]
