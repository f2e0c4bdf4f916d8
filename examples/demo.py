"""Embeds a file of proverbs with all-MiniLM-L6-v2 and shows which ones say the same. Run by `make demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxpool import LLM

HERE = Path(__file__).parent
TEXTS = HERE / "data" / "proverbs.txt"
OUTPUT = HERE.parent / "out" / "proverbs.npy"

# Said plainly; a proverb that says the same should be among the first.
MEANINGS = (
    "Do not judge something by how it looks.",
    "You learn who your friends are when you are in trouble.",
    "If you hurry, you make mistakes.",
    "Children turn out like their parents.",
    "Money does not make you happy.",
    "People who are alike spend time together.",
)


def show(title: str, labels: Sequence[str], scores: np.ndarray, texts: Sequence[str]) -> None:
    """Prints the three nearest texts for each row of `scores`."""
    print(f"\n{title:<60} {'cosine':>6}  nearest of {len(texts)} proverbs")
    for label, row in zip(labels, scores, strict=True):
        for rank, j in enumerate(np.argsort(-row)[:3]):
            print(f"{label if rank == 0 else '':<60.60} {row[j]:>6.3f}  {texts[j]}")


def main() -> None:
    """Embeds, prints the nearest neighbours of a few proverbs, and writes the vectors."""
    texts = TEXTS.read_text(encoding="utf-8").splitlines()
    with LLM("sentence-transformers/all-MiniLM-L6-v2") as llm:
        print(llm)
        llm.warmup()
        vectors = llm.embed_array(texts, use_tqdm=True)
        meanings = llm.similarity(llm.embed_array(MEANINGS), vectors)
        pairs = llm.similarity(vectors, vectors)
        stats = llm.stats
    np.fill_diagonal(pairs, -1)
    closest = [i for i in np.argsort(-pairs.max(1)) if i < pairs[i].argmax()][:6]
    show("a meaning", MEANINGS, meanings, texts)
    show("the proverbs most like another one", [texts[i] for i in closest], pairs[closest], texts)
    OUTPUT.parent.mkdir(exist_ok=True)
    np.save(OUTPUT, vectors)
    print(f"\n{stats.texts} texts, {stats.tokens} tokens, {stats.padding_share:.1%} padding.")
    print(f"Vectors: {OUTPUT} (float32 {vectors.shape})")


if __name__ == "__main__":
    main()
