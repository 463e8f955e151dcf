"""One verb for each step; each imports what it needs when it is called."""

from unscanned.cli.verbs import data, evaluation, synthesis, training
from unscanned.cli.verbs.common import app

__all__ = ["app", "data", "evaluation", "synthesis", "training"]
