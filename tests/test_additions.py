"""What CONTRIBUTING says a generator, a loss, a metric and a setting cost: done as it says, in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unscanned

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).parent / "formats" / "2026-11-26"

TRAIN = """
from unscanned.training.run import train
from unscanned.settings import resolve
small = {"prepare": {"shape": [24, 24, 24]}, "split": {"train": 2, "validation": 1, "test": 1},
         "training": {"epochs": 1, "steps_per_epoch": 2, "batch": 2, "patch": 16, "validation_stride": 16,
                      "device": "cpu", "threads": 1}, "synthesis": {"stride": 16}, "context": {"stride": 16}}
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of the package that a test may edit."""
    shutil.copytree(Path(unscanned.__file__).parent, tmp_path / "src" / "unscanned")
    shutil.copytree(STORED, tmp_path / "stored")
    return tmp_path


def example(heading):
    """The code of a section of CONTRIBUTING, without the assertions that show that it works."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    return re.sub(r"^(assert|black, \w+ =).*\n", "", code, flags=re.MULTILINE)


def add(tree, module, code):
    path = tree / "src" / "unscanned" / module
    path.write_text(path.read_text(encoding="utf-8") + "\n\n" + code, encoding="utf-8")


def touched(tree):
    """The modules of the copy that differ from the package."""
    package, copy = Path(unscanned.__file__).parent, tree / "src" / "unscanned"
    return sorted(
        path.relative_to(copy).as_posix()
        for path in copy.rglob("*.py")
        if path.read_bytes() != (package / path.relative_to(copy)).read_bytes()
    )


def run(tree, program):
    """Run a program with the copy, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_generator_with_an_option_of_its_own_is_one_file(tree):
    add(tree, "models/generators.py", example("A generator"))
    program = TRAIN + (
        'given = {"name": "voxelwise", "options": {"width": 5}, "residual": True}\n'
        'settings = resolve("resgan", overrides=small).change(generator=given, loss={"adversarial": 0.0})\n'
        'model = train("stored/dataset", "run", settings).model\n'
        "from unscanned.synthesis.model_file import load_model\n"
        "print([tuple(p.shape) for p in load_model(model).generators[0].parameters()][0])\n"
    )
    refused = (
        "from unscanned.models.generators import build\n"
        'try: build("voxelwise", options={"widht": 3})\nexcept Exception as error: print(error)\n'
    )
    shape, message = run(tree, program + refused).splitlines()
    assert shape == "(5, 1, 1, 1, 1)"
    assert "generator.options: widht: unknown option; expected one of width. Did you mean width?" in message
    assert touched(tree) == ["models/generators.py"]


def test_a_loss_term_is_one_file_and_a_weight_in_the_settings(tree):
    add(tree, "losses.py", example("A loss"))
    settings = tree / "src" / "unscanned" / "settings.py"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        text.replace(
            "    gdl: Weight = 1.0\n", '    l2: Weight = 0.0\n    "Weight of the L2 term."\n    gdl: Weight = 1.0\n'
        )
    )
    program = TRAIN + (
        'settings = resolve("adv", overrides=small).change(generator={"name": "small"}, loss={"l1": 0.0, "l2": 0.5,'
        ' "adversarial": 0.0})\n'
        'train("stored/dataset", "run", settings)\n'
        "import json\n"
        'steps = [json.loads(line) for line in open("run/log.jsonl")]\n'
        'step = next(event for event in steps if event["event"] == "step")\n'
        'print(step["l2"] > 0, abs(step["g_loss"] / (0.5 * step["l2"] * 16**3) - 1) < 1e-4)\n'
        "import subprocess, sys\n"
        'print("--loss.l2" in subprocess.run([sys.executable, "-m", "unscanned", "train", "--help"],'
        " capture_output=True, text=True).stdout)\n"
    )
    assert run(tree, program).split() == ["True", "True", "True"]
    assert touched(tree) == ["losses.py", "settings.py"]


def test_a_metric_is_one_file(tree):
    add(
        tree,
        "evaluation/metrics.py",
        example("A metric").replace("from unscanned.evaluation.scores import score\n", ""),
    )
    program = (
        "from unscanned.evaluation.evaluate import evaluate\n"
        "from unscanned.report.page import write_report\n"
        'result = evaluate("stored/dataset", {"demo": "stored/synthetic"}, "evaluation", source="PD", target="T2")\n'
        'write_report("evaluation", "report.html")\n'
        'print(result.content.arms["demo"]["head"]["median"].mean > 0)\n'
        'print("median" in open("evaluation/scores.csv").readline())\n'
        'print("Median error" in open("report.html").read())\n'
    )
    assert run(tree, program).split() == ["True", "True", "True"]
    assert touched(tree) == ["evaluation/metrics.py"]


def test_a_new_setting_orphans_no_run_and_no_model(tree):
    """Settings in three tables, one of them in the very table that decides each step, all with today's behaviour."""
    settings = tree / "src" / "unscanned" / "settings.py"
    text = settings.read_text(encoding="utf-8")
    for field in ("    batch: int = Field(7, ", "    gdl: Weight = 1.0\n", "    percentile: float = Field("):
        assert field in text
        name = field.split(":")[0].strip()
        text = text.replace(field, f'    new_{name}: float = 0.25\n    "Something new."\n{field}')
    settings.write_text(text)
    program = (
        "import hashlib\n"
        "from unscanned.files import read_json\n"
        "from unscanned.settings import decisive, read_settings\n"
        "from unscanned.synthesis.model_file import load_model\n"
        "from unscanned.synthesis.verify import verify\n"
        "from unscanned.training.run import train\n"
        'given = read_settings(read_json("stored/run/settings.json"), where="settings.json")\n'
        "assert given.training.new_batch == given.loss.new_gdl == given.prepare.new_percentile == 0.25\n"
        'print(decisive(given).get("loss"))\n'
        'model = train("stored/dataset", "stored/run", given).model\n'
        'print(hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest())\n'
        'print(load_model("stored/expected/run").sha256)\n'
        'print(verify("stored/synthetic/sub-002/anat/sub-002_desc-synthetic_T2w.nii.gz", device="cpu").verdict)\n'
        "from unscanned.errors import CheckpointError\n"
        'try: train("stored/dataset", "stored/run", given.change(training={"new_batch": 0.5}))\n'
        "except CheckpointError as error: print(error.found)\n"
    )
    loss, weights, identity, verdict, difference = run(tree, program).splitlines()
    assert loss == "None"
    shutil.rmtree(tree / "stored")
    shutil.copytree(STORED, tree / "stored")
    plain = program.replace(
        "assert given.training.new_batch == given.loss.new_gdl == given.prepare.new_percentile == 0.25\n", ""
    )
    plain = plain.split("from unscanned.errors")[0]
    shutil.rmtree(tree / "src")
    shutil.copytree(Path(unscanned.__file__).parent, tree / "src" / "unscanned")
    assert run(tree, plain).splitlines() == [loss, weights, identity, verdict]
    assert verdict in ("identical", "within tolerance")
    assert difference == "training.new_batch = 0.25, now 0.5"
