"""How long work tells how far it is: the library calls, the command line draws."""

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""
