"""The command line: one verb for each step, settings as options, and the exit code of each error."""

from unscanned.cli.main import main
from unscanned.cli.verbs import app

__all__ = ["app", "main"]
