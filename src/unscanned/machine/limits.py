"""How many files this process may have open."""

from __future__ import annotations

import resource

from unscanned.errors import ResourceError

__all__ = ["raise_file_limit_of_process"]


def raise_file_limit_of_process(count: int) -> None:
    """Let this process and its children have so many files open; each memory map counts as one.

    Raises:
        ResourceError: The system does not allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    except (ValueError, OSError) as error:  # beyond the hard limit, or the kernel's own
        raise ResourceError(
            "the system does not allow as many open files as there are prepared volumes",
            found=f"{soft} open files, and no more",
            expected=f"{count}",
            do="Have the hard limit of open files raised (ulimit -Hn), or train on fewer subjects.",
        ) from error
