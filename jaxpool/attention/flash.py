"""Flash attention over packed rows for GPUs, by a Pallas kernel that Triton compiles.

Scores stay on the chip, and a block of queries meets the keys of its own sequences only, so that a packed row costs
what its sequences do (cuDNN's takes rows of one sequence; `jax.nn` offers it no segments).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import kernels, nvidia, plain
from jaxpool.attention.mask import AttentionMask, Options

Array = jax.Array

# A block of queries, to which rows are filled up, and the keys that it meets at a time. Heads of more features take
# smaller ones: a block's operands lie in a multiprocessor's shared memory, 99 KB on an L4.
QUERIES, KEYS = 128, 64
WIDE_QUERIES, WIDE_KEYS = 64, 32
# The widest head that larger blocks are for, and the widest of all.
NARROW, WIDEST = 128, 256
# Of a matrix unit's operands: narrower heads are filled up with zeros.
LEAST_WIDTH = 16


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> str | None:
    """Why not, or None."""
    tokens, width = q.shape[1], q.shape[-1]
    reasons = {
        f"dtype is {q.dtype}, and it takes bfloat16": q.dtype != jnp.bfloat16,
        "scores have a bias": bias is not None,
        f"rows have {tokens} tokens, and it is for {QUERIES} and more": tokens < QUERIES,
        f"heads have {width} features, and it takes up to {WIDEST}": width > WIDEST,
        nvidia.TOO_OLD: nvidia.too_old(),
        "the scale is not a number": not isinstance(options.scale, int | float),
    }
    return next((reason for reason, holds in reasons.items() if holds), kernels.uneven(q))


def attend(
    q: Array, k: Array, v: Array, mask: AttentionMask, bias: None, options: Options, *, interpret: bool = False
) -> Array:
    """`attention` by the kernel; [R, T, N, H] in the options' dtype. `interpret` runs it as plain JAX, on any platform.

    Rows of padding are zero, or finite where they share a block with tokens.
    """

    def rows(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return _rows(q, k, v, segments, mask.causal, mask.window, options, interpret)

    return kernels.run(rows, q, k, v, mask.segments, block=QUERIES)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6, 7))
def _rows(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    causal: bool,
    window: tuple[int, int] | None,
    options: Options,
    interpret: bool,
) -> Array:
    # Imported late: Pallas costs start-up time, which only GPUs get back.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    rows, tokens, heads, width = q.shape
    shared = heads // k.shape[2]
    padded = max(LEAST_WIDTH, pl.next_power_of_2(width))
    queries, keys = (QUERIES, KEYS) if padded <= NARROW else (WIDE_QUERIES, WIDE_KEYS)
    first, end = _reach(segments, queries, causal, window)

    of_row = pl.BlockSpec((None, tokens, None, padded), lambda b, n, r: (r, 0, n // shared, 0))
    of_block = pl.BlockSpec((None, queries, None, padded), lambda b, n, r: (r, b, n, 0))
    bound = pl.BlockSpec((None, None), lambda b, n, r: (r, b))
    kernel = partial(_kernel, width=width, keys=keys, causal=causal, window=window, options=options)
    return pl.pallas_call(
        kernel,
        grid=(tokens // queries, heads, rows),
        in_specs=[bound, bound, pl.BlockSpec((None, tokens), lambda b, n, r: (r, 0)), of_block, of_row, of_row],
        out_specs=of_block,
        out_shape=jax.ShapeDtypeStruct(q.shape, options.dtype),
        compiler_params=triton.CompilerParams(num_warps=4 if padded <= 64 else 8, num_stages=2),
        interpret=interpret,
        name="flash",
    )(first, end, segments.astype(jnp.int32), q, k, v)


@_rows.defjvp
def _derivative(
    causal: bool,
    window: tuple[int, int] | None,
    options: Options,
    interpret: bool,
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
) -> tuple[Array, Array]:
    mask = AttentionMask(primals[3], causal, window)
    return _rows(*primals, causal, window, options, interpret), plain.derivative(primals, tangents, mask, options)


def _reach(segments: Array, block: int, causal: bool, window: tuple[int, int] | None) -> tuple[Array, Array]:
    """The first key that a block of queries sees, and the end of them: [R, T / block] each. Padding sees nothing."""
    tokens = segments.shape[1]
    index = jnp.arange(tokens, dtype=jnp.int32)
    changes = segments[:, 1:] != segments[:, :-1]
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    # Of each token's own segment.
    first = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    end = jax.lax.cummin(jnp.where(ends, index + 1, tokens), axis=1, reverse=True)
    if window is not None:
        first, end = jnp.maximum(first, index - window[0]), jnp.minimum(end, index + window[1] + 1)
    if causal:
        end = jnp.minimum(end, index + 1)
    real = segments > 0
    blocks = (-1, tokens // block, block)
    return (
        jnp.where(real, first, tokens).reshape(blocks).min(-1),
        jnp.where(real, end, 0).reshape(blocks).max(-1),
    )


def _kernel(
    first_ref: Any,
    end_ref: Any,
    segments_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    *,
    width: int,
    keys: int,
    causal: bool,
    window: tuple[int, int] | None,
    options: Options,
) -> None:
    """One block of one head's queries over all the keys that it sees, a running softmax."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    queries, padded = q_ref.shape
    start = pl.program_id(0) * queries
    own = start + jnp.arange(queries, dtype=jnp.int32)
    own_segments = segments_ref[pl.ds(start, queries)]
    real_width = (jnp.arange(padded) < width)[None, :]
    q = triton.load(q_ref, mask=real_width, other=0.0)
    # exp(s) = 2^(s · log₂ e), which is what the hardware has. One factor, but where the scores are capped in between.
    log2_e, capped = math.log2(math.e), options.soft_cap is not None
    scale, power = (options.scale, log2_e) if capped else (options.scale * log2_e, 1.0)

    def step(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, total, largest = carry
        these = pl.ds(number * keys, keys)
        k = triton.load(k_ref.at[these, :], mask=real_width, other=0.0)
        v = triton.load(v_ref.at[these, :], mask=real_width, other=0.0)
        scores = triton.dot(q, k.T) * scale
        if options.soft_cap is not None:
            scores = jnp.tanh(scores / options.soft_cap) * (options.soft_cap * power)
        visible = own_segments[:, None] == segments_ref[these][None, :]
        ahead = (number * keys + jnp.arange(keys, dtype=jnp.int32))[None, :] - own[:, None]
        if causal:
            visible &= ahead <= 0
        if window is not None:
            visible &= (ahead >= -window[0]) & (ahead <= window[1])
        scores = jnp.where(visible, scores, plain.MASKED)
        above = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp2(scores - above[:, None])
        # What was summed so far counted from another maximum. Where nothing was visible yet, this makes it nothing.
        shrink = jnp.exp2(largest - above)
        mixed = mixed * shrink[:, None] + triton.dot(weights.astype(v.dtype), v)
        return mixed, total * shrink + weights.sum(-1), above

    nothing = (
        jnp.zeros((queries, padded), jnp.float32),
        jnp.zeros(queries, jnp.float32),
        jnp.full(queries, plain.MASKED, jnp.float32),
    )
    steps = first_ref[...] // keys, (end_ref[...] + (keys - 1)) // keys
    mixed, total, _ = jax.lax.fori_loop(*steps, step, nothing)
    # Padding alone has met no key.
    mixed = mixed / jnp.maximum(total, 1e-30)[:, None]
    triton.store(out_ref, mixed.astype(out_ref.dtype), mask=real_width)
