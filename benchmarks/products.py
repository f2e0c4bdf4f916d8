"""Floating-point operations of a program's matrix products, counted where the program is still JAX's.

XLA's own count takes a loop's body once and a Pallas kernel for nothing; here a scan counts as often as it turns, and a
kernel as often as its grid has points. That is an upper bound: a window shortens the grid, but a causal mask skips
half of its points only while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def flops(jaxpr: Any) -> int:
    """2 · multiplications of every `dot_general` in a jaxpr, those of inner programs included."""
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> int:
    kind, params = equation.primitive.name, equation.params
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * inner * math.prod(equation.outvars[0].aval.shape)
    counts = [flops(inner) for inner in _jaxprs(params)]
    return _TIMES.get(kind, lambda params: 1)(params) * (max(counts, default=0) if kind == "cond" else sum(counts))


def _grid(params: Any) -> int:
    return math.prod(params["grid_mapping"].grid)


_TIMES = {
    "scan": lambda params: params["length"],
    "pallas_call": _grid,
    "shard_map": lambda params: params["mesh"].size,
}


def _jaxprs(params: Any) -> Iterator[Any]:
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner
