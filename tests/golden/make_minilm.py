"""Makes minilm.npz: sentence-transformers' vectors of `tests.nasty.NASTY` for all-MiniLM-L6-v2.

Run from the repository's root where torch is installed: python -m tests.golden.make_minilm
"""

from pathlib import Path

import numpy as np

from jaxpool.hub import MINILM, resolve
from tests.nasty import NASTY

if __name__ == "__main__":
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve(MINILM)), device="cpu")
    np.savez_compressed(Path(__file__).with_name("minilm.npz"), vectors=model.encode(list(NASTY), batch_size=1))
