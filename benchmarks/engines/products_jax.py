"""No engine: the matrix products alone, through XLA, one stream a core."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.roofline import ROWS, rate

PACKAGES = ("jax", "jaxlib")


def load(model: str, dtype: str, threads: int, folder: Path) -> Any:
    """A function from shapes to GFLOP/s."""
    jax.config.update("jax_num_cpu_devices", threads)
    result = jnp.int32 if dtype == "int8" else jnp.float32

    @jax.jit
    def layer(pairs: Any) -> list[jax.Array]:
        return [jnp.einsum("ti,io->to", x, w, preferred_element_type=result) for x, w in pairs]

    @cache
    def streams(shapes: tuple[tuple[int, int], ...]) -> list[Any]:
        pairs = [(jnp.ones((ROWS, i), dtype), jnp.ones((i, o), dtype)) for i, o in shapes]
        placed = [jax.device_put(pairs, device) for device in jax.devices()]
        return [lambda own=own: jax.block_until_ready(layer(own)) for own in placed]

    return lambda shapes: rate(streams(tuple(map(tuple, shapes))), shapes)
