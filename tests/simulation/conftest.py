"""A head that is quick to draw from."""

import numpy as np
import pytest

from unscanned.simulation import heads
from unscanned.simulation.heads import Head


@pytest.fixture(scope="session")
def small_head() -> Head:
    """A built-in head with voxels of 2.5 mm."""
    return heads.draw_built_in("small", np.random.default_rng(3), spacing_mm=2.5)
