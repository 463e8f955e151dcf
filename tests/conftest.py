"""Fixtures that more than one room of the tests uses."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real scans that lie beside the repository; a test that needs them is skipped where they are missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the scans are not beside the repository: {folder}")
    return folder
