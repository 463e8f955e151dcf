"""What a result was made with."""

import subprocess
from pathlib import Path

import pytest

import unscanned
from unscanned.machine.provenance import environment


def test_the_commit_is_the_last_one_that_changed_any_module_of_the_package():
    package = Path(unscanned.__file__).parent
    git = ["git", "-C", str(package), "log", "-1", "--format=%H", "--", "."]
    last = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    if not last:
        pytest.skip("the package does not run from a checkout")
    assert environment()["commit"] == last
