"""cuDNN's flash attention for NVIDIA GPUs, through `jax.nn`: rows that hold one sequence each, in bfloat16.

Packed rows need segments, which cuDNN takes on Hopper and newer only and JAX does not offer: there it is `flash`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpool.attention import nvidia
from jaxpool.attention.mask import AttentionMask, Options

Array = jax.Array

# Its kernels take wider heads on these.
HOPPER = (9, 0)


def unsupported(q: Array, k: Array, mask: AttentionMask, bias: Array | None, options: Options) -> str | None:
    """Why not, or None."""
    width, capability = q.shape[-1], nvidia.compute_capability()
    widest = 256 if capability and capability >= HOPPER else 128
    reasons = {
        f"dtype is {q.dtype}, and it takes bfloat16": q.dtype != jnp.bfloat16,
        "rows hold several sequences": mask.lengths is None or mask.lengths.shape[1] > 1,
        "scores have a bias": bias is not None,
        "scores have a soft cap": options.soft_cap is not None,
        "the window reaches to later tokens": mask.window is not None and not mask.causal,
        f"heads have {width} features, and it takes multiples of 8 up to {widest}": width % 8 > 0 or width > widest,
        nvidia.TOO_OLD: nvidia.too_old(),
        "there is no GPU here to ask for cuDNN": capability is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def attend(q: Array, k: Array, v: Array, mask: AttentionMask, bias: None, options: Options) -> Array:
    """`attention` by cuDNN; float32 [R, T, N, H]. Rows behind a sequence's end are zero."""
    assert mask.lengths is not None  # `unsupported` saw to it
    lengths = jnp.maximum(mask.lengths[:, 0], 1)  # a row without a key would be NaN
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=options.scale,
        is_causal=mask.causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if mask.window is None else (mask.window[0], 0),  # causal: nothing later is seen
        implementation="cudnn",
    )
    return mixed.astype(jnp.float32)
