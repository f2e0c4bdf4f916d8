"""Attention over long rows a block of queries at a time, so that no [T, S] of all heads is ever written out.

On a CPU one head after another too: its caches then hold a block's scores. What a window hides is not computed.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp

from jaxpool.attention.mask import AttentionMask, Options
from jaxpool.attention.plain import MASKED, heads_in_front, softmax_product, tokens_in_front
from jaxpool.sharding import platform

Array = jax.Array

# Rows of fewer tokens are quicker in one piece (docs/performance.md).
MIN_TOKENS = 512
# Scores of one head in one block; on chips, where all rows and heads go together, queries in one block.
CPU_SCORES = 2**18
CHIP_QUERIES = 128
# Of queries behind a window.
SHORTEST = 64


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> str | None:
    """Why not, or None."""
    tokens = q.shape[1]
    reasons = {
        "scores have a bias": bias is not None,
        f"rows have {tokens} tokens, and it is for {MIN_TOKENS} and more": tokens < MIN_TOKENS,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def attend(q: Array, k: Array, v: Array, mask: AttentionMask, bias: None, options: Options) -> Array:
    """`attention` block by block; float32 [R, T, N, H]."""
    q, k, v = heads_in_front(q, k, v)
    length, alone = q.shape[-2], _on_one_cpu()
    block = _block(mask, length, q.shape[2]) if alone else CHIP_QUERIES
    # The last block is filled up with queries that mean nothing.
    whole = -(-length // block) * block
    q = jnp.pad(q, [(0, 0)] * 3 + [(0, whole - length), (0, 0)])

    def of_block(start: Array, end: int) -> Array:
        """[R, K, G, block, H] of queries from `start` on, which see no key behind `end`."""
        reach = min(end, _left(mask, length) + block + _right(mask, length))
        first = jnp.clip(start - _left(mask, length), 0, end - reach)
        added = jnp.where(mask.visible(start + jnp.arange(block), first + jnp.arange(reach)), 0.0, MASKED)
        own = jax.lax.dynamic_slice_in_dim(q, start, block, axis=-2)
        keys, values = (jax.lax.dynamic_slice_in_dim(x, first, reach, axis=-2) for x in (k, v))
        if not alone:
            return softmax_product(own, keys, values, added[:, None, None], options)
        rows, heads = k.shape[:2]
        pairs = [x.reshape(rows * heads, *x.shape[2:]) for x in (own, keys, values)]
        of_row = jnp.repeat(jnp.arange(rows), heads)
        mixed = jax.lax.map(lambda x: softmax_product(x[0], x[1], x[2], added[x[3]], options), (*pairs, of_row))
        return mixed.reshape(rows, heads, *mixed.shape[1:])

    # Under a causal mask, blocks of the row's first quarter need its first quarter of keys only, and so on.
    ends = _ends(whole, block) if mask.causal and mask.window is None else [whole]
    bands = [
        jax.lax.map(partial(of_block, end=min(end, length)), jnp.arange(start, end, block))
        for start, end in pairwise((0, *ends))
    ]  # each [blocks, R, K, G, block, H]
    return tokens_in_front(jnp.moveaxis(jnp.concatenate(bands), 0, 3).reshape(q.shape)[..., :length, :])


def _block(mask: AttentionMask, length: int, shared: int) -> int:
    """The longest of even blocks of queries whose scores over `shared` heads a CPU's cache holds."""
    span = _left(mask, length) + _right(mask, length)
    fits = max(1, min(CPU_SCORES // (length * shared), max(span, SHORTEST), length))
    return -(-length // -(-length // fits))


def _ends(length: int, block: int) -> list[int]:
    blocks = length // block
    return sorted({-(-blocks * quarter // 4) * block for quarter in (1, 2, 3, 4)})


def _left(mask: AttentionMask, length: int) -> int:
    """How many earlier keys a query may see."""
    return length if mask.window is None else min(mask.window[0], length)


def _right(mask: AttentionMask, length: int) -> int:
    """How many later keys a query may see."""
    return 0 if mask.causal else length if mask.window is None else min(mask.window[1], length)


def _on_one_cpu() -> bool:
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size == 1
