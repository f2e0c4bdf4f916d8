"""No engine: the matrix products alone, through torch, one stream a core."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from benchmarks.machine import flags
from benchmarks.roofline import ROWS, rate

PACKAGES = ("torch",)


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """A function from shapes to GFLOP/s."""
    if dtype == "int8" and not any("vnni" in flag for flag in flags()):
        raise NotImplementedError("without VNNI torch's int8 product takes a hundred times as long as any other")
    kind = getattr(torch, dtype)
    product = torch._int_mm if dtype == "int8" else torch.mm

    def measure(shapes: list[list[int]]) -> float:
        # Weights as a Linear keeps them, [out, in], read transposed.
        pairs = [(torch.ones(ROWS, i, dtype=kind), torch.ones(o, i, dtype=kind).T) for i, o in shapes]
        return rate([lambda: [product(x, w) for x, w in pairs]] * threads, shapes)

    return measure
