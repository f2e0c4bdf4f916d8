"""Norms over the last axis, in float32: LayerNorm and RMSNorm; by our own kernel on x86 CPUs (`native/norm.h`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool import native
from jaxpool.params import Tree

Array = jax.Array


def layer_norm(params: Tree, x: Array, epsilon: float, *, dtype: Any = jnp.float32) -> Array:
    """LayerNorm (two-pass variance, as torch's): `scale`, and `bias` if there is one."""
    bias = params["bias"].astype(jnp.float32) if "bias" in params else None
    return _norm(x, params["scale"].astype(jnp.float32), bias, epsilon, True, dtype)


def rms_norm(params: Tree, x: Array, epsilon: float, offset: float = 0.0, *, dtype: Any = jnp.float32) -> Array:
    """RMSNorm; Gemma's scales by (`offset` = 1) + scale."""
    return _norm(x, params["scale"].astype(jnp.float32) + offset, None, epsilon, False, dtype)


def _norm(x: Array, scale: Array, bias: Array | None, epsilon: float, centred: bool, dtype: Any) -> Array:
    if native.here() and x.dtype in native.DTYPES and dtype in native.DTYPES:
        return _by_kernel(x, scale, bias, epsilon, centred, dtype)
    return _plain(x, scale, bias, epsilon, centred).astype(dtype)


def _plain(x: Array, scale: Array, bias: Array | None, epsilon: float, centred: bool) -> Array:
    x = x.astype(jnp.float32)
    if centred:
        x = x - x.mean(-1, keepdims=True)
    y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * scale
    return y if bias is None else y + bias


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _by_kernel(x: Array, scale: Array, bias: Array | None, epsilon: float, centred: bool, dtype: Any) -> Array:
    bias = jnp.zeros(0, jnp.float32) if bias is None else bias
    rows = x.reshape(-1, x.shape[-1])
    how = {"epsilon": np.float32(epsilon), "centred": centred, "kernel": "auto"}
    y = native.call("norm", jax.ShapeDtypeStruct(rows.shape, dtype), rows, scale, bias, **how)
    return y.reshape(x.shape)


@_by_kernel.defjvp
def _derivative(
    epsilon: float, centred: bool, dtype: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:

    def plain(x: Array, scale: Array, bias: Array | None) -> Array:
        return _plain(x, scale, bias, epsilon, centred).astype(dtype)

    _, change = jax.jvp(plain, primals, tangents)
    return _by_kernel(*primals, epsilon, centred, dtype), change
