"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and the ways of stretching them, as in transformers.

Angles are float32 and worked out in the program: a table kept in bf16 would round positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.batch import PLACES, Batch, by_token

Array = jax.Array


@dataclass(frozen=True)
class Rotary:
    """One set of rotary frequencies.

    Attributes:
        size: how many of a head's features are rotated (the first ones).
        theta: base of the wavelengths.
        kind: a key of `KINDS` or `BY_LENGTH`.
        settings: the kind's own numbers, as (name, value) pairs.
        max_positions: config.json's `max_position_embeddings`.
        sections: how many frequencies go by time, line and column (M-RoPE: Wang et al. 2024, arXiv:2409.12191) where
            a text has pictures; elsewhere the three are the same.
    """

    size: int
    theta: float
    kind: str = "default"
    settings: tuple[tuple[str, Any], ...] = ()
    max_positions: int = 0
    sections: tuple[int, ...] = ()

    def angles(self, batch: Batch) -> tuple[Array, Array]:
        """cos and sin, float32 [R, T, size/2], for every token's position in its own sequence."""
        with jax.named_scope("rotary"):
            if self.kind in BY_LENGTH:
                frequencies, scale = BY_LENGTH[self.kind](self, batch)
            else:
                inverse, scale = KINDS[self.kind](self)
                frequencies = jnp.asarray(inverse, jnp.float32)
            positions = batch.positions[..., None]
            if self.sections and PLACES in batch.arrays:
                positions = jnp.repeat(batch.arrays[PLACES], np.array(self.sections), axis=-1)
            angles = positions.astype(jnp.float32) * frequencies
            return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates x [R, T, N, H] in float32: feature i with feature i + size/2, the rest left as it is."""
    cos, sin = (a[:, :, None, :] for a in angles)
    half = cos.shape[-1]
    x = x.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def read_rotary(parameters: Mapping[str, Any], head_size: int, max_positions: int, default_theta: float) -> Rotary:
    """From config.json's `rope_parameters` (or the older `rope_scaling` with `rope_theta` put in).

    Raises:
        ValueError: a kind that is not known, or one without a number that it needs.
    """
    settings = dict(parameters)
    kind = settings.pop("rope_type", None) or settings.pop("type", None) or "default"
    settings.pop("type", None)
    kind = _OLDER_NAMES.get(kind, kind)
    theta = settings.pop("rope_theta", None) or default_theta
    size = int(head_size * (settings.pop("partial_rotary_factor", None) or 1.0))
    if kind not in _SETTINGS:
        raise ValueError(f"config.json: rope type {kind!r} is not known, expected one of {[*KINDS, *BY_LENGTH]}")
    needed, optional = _SETTINGS[kind]
    if missing := [name for name in needed if settings.get(name) is None]:
        raise ValueError(f"config.json: rope type {kind!r} needs {missing}")
    if unknown := sorted(k for k, v in settings.items() if k not in (*needed, *optional) and v is not None):
        raise ValueError(f"config.json: rope type {kind!r} does not know {unknown}")
    for name in _EACH_FREQUENCY:
        if name in settings and not _are_numbers(settings[name], size // 2):
            raise ValueError(f"config.json: `{name}` of rope type {kind!r} is no list of {size // 2} numbers")
    settings |= {name: tuple(settings[name]) for name in _EACH_FREQUENCY if name in settings}
    kept = tuple(sorted((k, v) for k, v in settings.items() if v is not None))
    return Rotary(size, float(theta), kind, kept, max_positions)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == count and all(isinstance(v, int | float) for v in values)


# Phi-3's first configs say so.
_OLDER_NAMES = {"su": "longrope"}
# Settings with a number for every frequency.
_EACH_FREQUENCY = ("long_factor", "short_factor")
# What each kind must and may have beside theta.
_SETTINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ("factor", "original_max_position_embeddings")),
    "linear": (("factor",), ("original_max_position_embeddings",)),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        ("long_factor", "short_factor", "original_max_position_embeddings"),
        ("attention_factor", "factor"),
    ),
}


def _inverse(size: int, theta: float) -> np.ndarray:
    exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


def _default(rotary: Rotary) -> tuple[np.ndarray, float]:
    return _inverse(rotary.size, rotary.theta), 1.0


def _linear(rotary: Rotary) -> tuple[np.ndarray, float]:
    return _inverse(rotary.size, rotary.theta) / np.float32(dict(rotary.settings)["factor"]), 1.0


def _llama3(rotary: Rotary) -> tuple[np.ndarray, float]:
    s = dict(rotary.settings)
    inverse = _inverse(rotary.size, rotary.theta)
    wavelength = 2 * math.pi / inverse
    low, high, original = s["low_freq_factor"], s["high_freq_factor"], s["original_max_position_embeddings"]
    smooth = (original / wavelength - low) / (high - low)
    stretched = inverse / s["factor"]
    between = (1 - smooth) * stretched + smooth * inverse
    out = np.where(wavelength > original / low, stretched, np.where(wavelength < original / high, inverse, between))
    return out.astype(np.float32), 1.0


def _yarn(rotary: Rotary) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023, arXiv:2309.00071)."""
    s = dict(rotary.settings)
    factor, size = s["factor"], rotary.size

    def mscale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    def turning(rotations: float) -> float:
        original = s["original_max_position_embeddings"]
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rotary.theta))

    scale = s.get("attention_factor")
    if scale is None:
        both = s.get("mscale") and s.get("mscale_all_dim")
        scale = mscale(s["mscale"]) / mscale(s["mscale_all_dim"]) if both else mscale()
    low, high = turning(s.get("beta_fast") or 32), turning(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    inverse = _inverse(size, rotary.theta)
    return (inverse / factor * ramp + inverse * (1 - ramp)).astype(np.float32), scale


def _dynamic(rotary: Rotary, batch: Batch) -> tuple[Array, float]:
    """Dynamic NTK: the base grows with a sequence's own length past `max_positions`."""
    factor, size = dict(rotary.settings)["factor"], rotary.size
    own = jnp.maximum(batch.segments - 1, 0)
    length = jnp.maximum(jnp.take_along_axis(batch.lengths, own, axis=1), rotary.max_positions).astype(jnp.float32)
    stretch = factor * length / rotary.max_positions - (factor - 1)
    theta = rotary.theta * stretch ** (size / (size - 2))
    return 1.0 / theta[..., None] ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size), 1.0


def _longrope(rotary: Rotary, batch: Batch) -> tuple[Array, float]:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): other factors for sequences longer than those of the training."""
    s = dict(rotary.settings)
    trained, inverse = s["original_max_position_embeddings"], _inverse(rotary.size, rotary.theta)
    short, long = (inverse / np.asarray(s[name], np.float32) for name in ("short_factor", "long_factor"))
    is_long = by_token(batch, batch.lengths) > trained
    factor, scale = s.get("factor") or rotary.max_positions / trained, s.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return jnp.where(is_long[..., None], long, short), scale


# Float32 inverse frequencies [size/2], and what cos and sin are multiplied by.
KINDS: Mapping[str, Callable[[Rotary], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
# Those whose frequencies go by a sequence's own length: [R, T, size/2].
BY_LENGTH: Mapping[str, Callable[[Rotary, Batch], tuple[Array, float]]] = {
    "dynamic": _dynamic,
    "longrope": _longrope,
}
