"""Splash attention, the TPU's flash kernel: scores stay in the chip's vector memory, masked-out blocks are skipped.

The kernel is Pallas' `splash_attention`, here over packed rows. Causal and windowed masks skip blocks of T × S;
segments do not, they only mask.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool.attention import kernels
from jaxpool.attention.mask import AttentionMask, Options

Array = jax.Array

# XLA fuses the scores of shorter rows, where the kernel would take many short steps (docs/tpu.md).
MIN_TOKENS = 512
# Sides of the kernel's blocks, best first. Rows are filled up to a multiple of the last.
BLOCKS = (512, 256, 128)


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> str | None:
    """Why not, or None."""
    tokens = q.shape[1]
    reasons = {
        "scores have a bias": bias is not None,
        f"rows have {tokens} tokens, and it is for {MIN_TOKENS} and more": tokens < MIN_TOKENS,
    }
    return next((reason for reason, holds in reasons.items() if holds), kernels.uneven(q))


def attend(
    q: Array, k: Array, v: Array, mask: AttentionMask, bias: None, options: Options, *, interpret: bool = False
) -> Array:
    """`attention` by the kernel; float32 [R, T, N, H]. `interpret` runs it as plain JAX, on any platform."""
    compute = partial(_rows, causal=mask.causal, window=mask.window, options=options, interpret=interpret)
    # Products of float32 in a kernel are rounded to bfloat16 too unless told otherwise; bfloat16's own are exact.
    exact = jax.default_matmul_precision("highest") if q.dtype == jnp.float32 else nullcontext()
    with exact:
        return kernels.run(compute, q, k, v, mask.segments, block=BLOCKS[-1]).astype(jnp.float32)


def _rows(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    *,
    causal: bool,
    window: tuple[int, int] | None,
    options: Options,
    interpret: bool,
) -> Array:
    # Imported late: Pallas costs start-up time, which only TPUs get back.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, heads = q.shape[1:3]
    block = next(side for side in BLOCKS if tokens % side == 0)
    # Tokens in the lanes: a vector of 64 features would be filled up to 128 of them, in memory too, and halves of a
    # vector that is rotated would lie apart, each filled up (docs/tpu.md).
    lanes = splash.QKVLayout.SEQ_MINOR
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([_static_mask(splash, tokens, causal, window)] * heads),
        block_sizes=splash.BlockSizes(block_q=block, block_kv=block, q_layout=lanes, k_layout=lanes, v_layout=lanes),
        attn_logits_soft_cap=options.soft_cap,
        interpret=interpret,
    )
    # The kernel does not scale. Padding is a segment of its own (0), so that its rows see something and stay finite.
    q = (q.astype(jnp.float32) * options.scale).astype(q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [R, N, T, H]
    mixed = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments))
    return jnp.swapaxes(mixed, 1, 2)


def _static_mask(splash: Any, tokens: int, causal: bool, window: tuple[int, int] | None) -> Any:
    """The part of the mask that all rows share; None on a side means no limit."""
    left, right = window or (None, None)
    if causal:
        right = 0
    if left is None and right is None:
        return splash.FullMask((tokens, tokens))
    return splash.LocalMask((tokens, tokens), (left, right), offset=0)
