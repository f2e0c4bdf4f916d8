"""The similarities of sentence-transformers between two sets of vectors, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def _normalised(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _normalised(a) @ _normalised(b).T


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b.T


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)  # the squares of near vectors cancel
    squared = (a**2).sum(-1)[:, None] + (b**2).sum(-1)[None] - 2 * a @ b.T
    return -np.sqrt(np.maximum(squared, 0)).astype(np.float32)


def _manhattan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -np.stack([np.abs(row - b).sum(-1) for row in a]) if len(a) else np.zeros((0, len(b)), np.float32)


SIMILARITIES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}


def similarity(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Similarity of every row of `a` ([n, D] or [D]) with every row of `b` ([m, D] or [D]): float32 [n, m]."""
    a, b = np.atleast_2d(np.asarray(a, np.float32)), np.atleast_2d(np.asarray(b, np.float32))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"similarity: the vectors differ in width: {a.shape[1]} and {b.shape[1]}")
    return SIMILARITIES[name](a, b)
