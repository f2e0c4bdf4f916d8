"""What a Pallas kernel needs around it: whole blocks of tokens, and its own rows and heads on each device."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpool.sharding import axis_size, partition

Array = jax.Array


def uneven(q: Array) -> str | None:
    """Says so where the heads of q [R, T, N, H] do not divide over the devices that share them."""
    heads, shards = q.shape[2], axis_size("heads")
    return f"{heads} heads do not divide over {shards} devices" if heads % shards else None


def run(compute: Callable[..., Array], q: Array, k: Array, v: Array, segments: Array, *, block: int) -> Array:
    """compute(q, k, v, segments), each device of the mesh in context with its own rows and heads.

    XLA does not partition such calls by itself. Without a mesh it is one call.

    Args:
        compute: of q [R, T, N, H], k and v [R, T, K, H] and segments [R, T], to [R, T, N, H].
        q, k, v, segments: of all devices.
        block: rows are filled up with padding to a multiple of it.
    """
    tokens, mesh, shards = q.shape[1], jax.sharding.get_abstract_mesh(), axis_size("heads")
    if k.shape[2] % shards:
        # Fewer kv heads than devices: each device gets a copy of those that its own heads share.
        k, v = (jnp.repeat(x, math.lcm(k.shape[2], shards) // k.shape[2], axis=2) for x in (k, v))
    if behind := -tokens % block:
        q, k, v, segments = (
            jnp.pad(x, [(0, 0), (0, behind)] + [(0, 0)] * (x.ndim - 2)) for x in (q, k, v, jnp.asarray(segments))
        )
    if not mesh.empty:
        split, rows = partition(("rows", None, "heads", None), mesh), partition(("rows",), mesh)
        compute = jax.shard_map(compute, in_specs=(split, split, split, rows), out_specs=split, check_vma=False)
    return compute(q, k, v, segments)[:, :tokens]
