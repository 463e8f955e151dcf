"""How fast the networks run here, against what a user would take instead."""

from unscanned.benchmark.run import benchmark
from unscanned.benchmark.show import check_plot, plot, table

__all__ = ["benchmark", "check_plot", "plot", "table"]
