"""Kernels of our own for x86 CPUs (`native/`), called by XLA: what this machine has of them.

They are for programs on one CPU device: a mesh of several is XLA's to split.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.log import once
from jaxpool.sharding import platform

Array = jax.Array

# Of floats, what the kernels take and give.
DTYPES = (jnp.float32, jnp.bfloat16)
# Instruction sets that multiply bfloat16; the others widen it first.
BFLOAT16_UNITS = ("amx", "avx512_bf16")


@cache
def kernels() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """For each kernel's name and dtype of its operands, the instruction sets that can compute it here, best first; none
    for any where the CPU has no AVX2, and nothing at all where the module is not built or XLA does not take it.
    """
    try:
        from jaxpool import _native
    except ImportError:
        return {}
    try:
        for name, handler in _native.handlers().items():
            jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
    except Exception as error:  # XLA's own kinds, by the version
        once(
            "XLA does not take jaxpool's kernels, which were built with a newer jaxlib's headers; "
            f"upgrade jax, or install jaxpool with --no-build-isolation ({error})"
        )
        return {}
    return _native.kernels()


def exist() -> bool:
    """Whether this machine has any."""
    return bool(kernels() and kernels()["product"]["float32"])


def best(name: str, dtype: Any) -> str | None:
    """The instruction set that computes the kernel of that name in a dtype here."""
    return next(iter(kernels()[name][jnp.dtype(dtype).name]), None) if exist() else None


def here() -> bool:
    """Whether there are kernels for the program that is being traced: one for a mesh of one CPU (`jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh().size == 1 and platform() == "cpu" and exist()


def call(name: str, results: Any, *operands: Array, **attributes: Any) -> Any:
    """What the kernel of that name makes of its operands; it cannot be differentiated.

    Args:
        name: of one of XLA's handlers (`native/module.cc`).
        results: a `jax.ShapeDtypeStruct`, or several.
        operands, attributes: as the handler takes them.
    """
    kernels()  # registers them, if nobody has asked before
    return jax.ffi.ffi_call(_target(name), results, vmap_method="sequential")(*operands, **attributes)


def _target(name: str) -> str:
    return f"jaxpool_{name}"
