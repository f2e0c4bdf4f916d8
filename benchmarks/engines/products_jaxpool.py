"""No engine: the matrix products alone, by jaxpool's own kernels, one stream a core."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import ROWS, rate
from jaxpool import native
from jaxpool.packing import pack, product

PACKAGES = ("jaxpool", "jax", "jaxlib")


def load(model: str, dtype: str, threads: int, folder: Path) -> Any:
    """A function from shapes to GFLOP/s: kernels laid out once, as the engine has them, and nothing behind the sums."""
    jax.config.update("jax_num_cpu_devices", threads)
    if not native.exist():
        raise NotImplementedError("jaxpool has no kernels of its own on this machine")
    # As the engine has it: what follows 8-bit products is in bfloat16 where the CPU multiplies that.
    finer = native.best("product", "bfloat16") in native.BFLOAT16_UNITS
    result = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16" if finer else "float32"}[dtype]

    @jax.jit
    def layer(operands: Any) -> list[jax.Array]:
        return [product(x, kernel, dtype=result, scales=scales) for x, kernel, scales in operands]

    def operands(inputs: int, outputs: int) -> tuple[Any, ...]:
        scales = (np.ones(ROWS, np.float32), np.ones(outputs, np.float32)) if dtype == "int8" else None
        return np.ones((ROWS, inputs), jnp.dtype(dtype)), pack(np.ones((inputs, outputs), jnp.dtype(dtype)), 1), scales

    @cache
    def streams(shapes: tuple[tuple[int, int], ...]) -> list[Any]:
        made = [operands(*shape) for shape in shapes]
        placed = [jax.device_put(made, device) for device in jax.devices()]
        return [lambda own=own: jax.block_until_ready(layer(own)) for own in placed]

    return lambda shapes: rate(streams(tuple(map(tuple, shapes))), shapes)
