"""Attention over packed rows: the table of backends that compute it, and which one a program gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpool import sharding
from jaxpool.attention import blocked, cudnn, flash, native, plain, splash
from jaxpool.attention.mask import AttentionMask, Options
from jaxpool.log import once

__all__ = ["BACKENDS", "AttentionMask", "Backend", "Options", "attention"]

Array = jax.Array


class Backend(NamedTuple):
    """One way to compute attention.

    Attributes:
        attend: (q, k, v, mask, bias, options) -> [R, T, N, H] in float32, or in the options' dtype already.
        unsupported: (q, k, mask, bias, options) -> why it cannot, or None. Decided while tracing: it reads shapes,
            dtypes and the mask's structure.
        platform: the only one that it runs on, or None for all.
    """

    attend: Callable[..., Array]
    unsupported: Callable[..., str | None]
    platform: str | None = None

    def reason(self, platform: str | None, *case: object) -> str | None:
        """Why it cannot compute this case on `platform`, or None."""
        if self.platform not in (None, platform):
            return f"it runs on {self.platform}, and this program is for {platform or 'no mesh'}"
        return self.unsupported(*case)


# In the order of choice: the first that can.
BACKENDS: Mapping[str, Backend] = {
    "splash": Backend(splash.attend, splash.unsupported, "tpu"),
    "cudnn": Backend(cudnn.attend, cudnn.unsupported, "gpu"),
    "flash": Backend(flash.attend, flash.unsupported, "gpu"),
    "native": Backend(native.attend, native.unsupported, "cpu"),
    "blocked": Backend(blocked.attend, blocked.unsupported),
    "einsum": Backend(plain.attend, plain.unsupported),
}
AUTO = "auto"


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: AttentionMask,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dtype: Any = jnp.float32,
    backend: str = AUTO,
) -> Array:
    """Softmax attention within segments.

    Args:
        q: [R, T, N, H] in the compute dtype.
        k, v: [R, T, K, H]; N is a multiple of K.
        mask: who sees whom.
        bias: added to the scaled scores, broadcastable to [R, N, T, S] with its heads written out.
        scale: of the scores, H**-0.5 by default.
        soft_cap: scores s become soft_cap · tanh(s / soft_cap) (Gemma 2).
        dtype: of the result; sums are float32.
        backend: a name in `BACKENDS`, or "auto" for the first that can, on the platform of the mesh (`jax.set_mesh`)
            that the program is compiled for; without a mesh one that runs on all.

    Returns:
        [R, T, N, H]. Padding's rows are finite and mean nothing.

    Raises:
        ValueError: the backend named cannot compute this case; the message says why.
    """
    options = Options(q.shape[-1] ** -0.5 if scale is None else scale, soft_cap, dtype)
    name = choose(backend, q, k, mask, bias, options)
    return BACKENDS[name].attend(q, k, v, mask, bias, options).astype(dtype)


def choose(backend: str, *case: object) -> str:
    """The backend to use for a case (q, k, mask, bias, options): `backend` itself, or what "auto" takes."""
    platform = sharding.platform()
    if backend != AUTO:
        if backend not in BACKENDS:
            raise ValueError(f"attention backend {backend!r} is not known, expected one of {[AUTO, *BACKENDS]}")
        if reason := BACKENDS[backend].reason(platform, *case):
            raise ValueError(f"attention backend {backend!r} cannot: {reason}")
        return backend
    reasons = {name: BACKENDS[name].reason(platform, *case) for name in BACKENDS}
    chosen = next(name for name, reason in reasons.items() if reason is None)
    for name, reason in reasons.items():
        if reason and BACKENDS[name].platform == platform:
            once(f"attention: {chosen}, since {name} cannot: {reason}", logging.INFO)
    return chosen
