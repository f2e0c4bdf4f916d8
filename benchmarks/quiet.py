"""Whether anything else runs on the machine while a figure is taken; waits until nothing does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.machine import cores

T = TypeVar("T")

# Of all cores' time, at most, may be other processes'.
SHARE = 0.08
# Seconds after which a figure is kept as it is, however busy the machine.
PATIENCE = 600


def undisturbed(group: int, measure: Callable[[], T], say: Callable[[str], None], patience: float | None = None) -> T:
    """`measure()` while only a process group runs: waits for that, and measures again where it did not last.

    A machine that never falls quiet gets its figure too, after `patience`, and a line that says so.

    Args:
        group: the processes that are measured; all others of the comparison are stopped.
        measure: what takes the figure.
        say: takes a line about a round that is repeated.
        patience: seconds; `PATIENCE` unless said. 0: nothing is waited for, or measured again.
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        _wait(deadline)
        start, others = time.monotonic(), _busy() - _of(group)
        result = measure()
        share = (_busy() - _of(group) - others) / (time.monotonic() - start) / cores()
        if share <= SHARE:
            return result
        over = time.monotonic() >= deadline
        say(f"others took {share:.0%} of the cores: {'kept all the same' if over else 'once more'}")
        if over:
            return result


def _wait(deadline: float) -> None:
    while time.monotonic() < deadline:
        before = _busy()
        time.sleep(1)
        if _busy() - before <= SHARE * cores():
            return


def _busy() -> float:
    """Seconds that all cores have worked so far; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _of(group: int) -> float:
    """Seconds that a process group has worked so far."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
