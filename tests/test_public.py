"""The public names of the package."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, types
import unscanned
for module in pkgutil.walk_packages(unscanned.__path__, "unscanned."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([name for name in unscanned.__all__ if isinstance(getattr(unscanned, name), types.ModuleType)])
"""


def test_no_module_takes_the_place_of_a_public_name_once_it_is_imported():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
