"""How fast the networks run here, against what a user would take instead."""

from unscanned.benchmark.run import benchmark
from unscanned.benchmark.show import plot, table

__all__ = ["benchmark", "plot", "table"]
