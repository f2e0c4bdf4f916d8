"""How far from sentence-transformers' vectors, and how far a text's own vector moves with its company."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np

from benchmarks.corpus import docstrings
from jaxpool import LLM
from tests.nasty import NASTY


def thousand() -> list[str]:
    """1,000 texts of 1 token to far beyond the limit: docstrings, joined docstrings, scripts, emoji, controls."""
    real = docstrings(940)
    long = ["\n\n".join(real[i : i + 12]) for i in range(0, 600, 10)]
    return list(islice([*NASTY, *long, *real], 1000))


def rows(model: str, reference: np.ndarray, texts: list[str]) -> Iterator[tuple[str, str]]:
    """(what, value) lines for the table."""
    with LLM(model) as llm:
        together = llm.embed_array(texts)
        yield (
            f"fp32 against sentence-transformers, {len(texts)} texts, max |Δ|",
            f"{np.abs(together - reference).max():.1e}",
        )
        sample = list(range(0, len(texts), 10))
        alone = np.concatenate([llm.embed_array([texts[i]]) for i in sample])
        moved = np.abs(alone - together[sample]).max() / np.abs(together).max()
        yield f"fp32, a text alone against in company, {len(sample)} texts, max |Δ| / max |x|", f"{moved:.1e}"
    with LLM(model, deterministic=True) as llm:
        picked = [texts[i] for i in sample]
        same = np.array_equal(llm.embed_array(picked), llm.embed_array(picked[::-1])[::-1])
        yield "deterministic=True, bits equal in another order", "yes" if same else "NO"
    with LLM(model, dtype="bfloat16") as llm:
        some = sample[::2]
        cosine = (llm.embed_array([texts[i] for i in some]) * reference[some]).sum(1)
        yield f"bf16 against sentence-transformers fp32, {len(some)} texts, lowest cosine", f"{cosine.min():.5f}"


def reference(model: str, texts: list[str]) -> np.ndarray:
    """sentence-transformers' fp32 vectors."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model, device="cpu").encode(texts)


def random_lengths(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts of 0 to 120 words."""
    words = cycle(" ".join(docstrings(200)).split())
    rng = np.random.default_rng(seed)
    return (" ".join(islice(words, int(n))) for n in rng.integers(0, 120, count) ** 2 // 120)


def recompilation(model: str, count: int = 10_000) -> Iterator[tuple[str, str]]:
    """Compilations after warm-up, and padding, over many texts of random lengths."""
    with LLM(model) as llm:
        llm.warmup()
        compiled = llm.stats.compilations
        for _ in llm.embed_stream(random_lengths(count)):
            pass
        yield "programs compiled at warm-up", str(compiled)
        yield (
            f"programs compiled over {count:,} texts of random lengths after it",
            str(llm.stats.compilations - compiled),
        )
        yield "padding over them", f"{llm.stats.padding_share:.1%}"
