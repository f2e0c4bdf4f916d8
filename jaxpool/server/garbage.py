"""Python's garbage collector in a process that does nothing but serve: seldom, and not over what stays.

Nearly all that a request leaves behind goes with its last reference. By Python's own thresholds the collector still ran
seventy times a second, and now and then over everything that JAX and the models hold, for 0.2 s in which no request was
read or answered (docs/performance.md).
"""

from __future__ import annotations

import gc

# New objects beyond those that went, before the youngest are looked through; older ones every tenth time.
THRESHOLDS = (20_000, 10, 10)


def collect_seldom() -> None:
    """From now on; what there is now is kept for good. For a process of our own only: these are its global settings."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
