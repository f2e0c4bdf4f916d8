"""How a family's texts end, where that is not where they end: CLIP's at their first end token, SigLIP's padded."""

from __future__ import annotations

import numpy as np

from jaxpool.converters.checkpoint import read_json
from jaxpool.recipe import Recipe
from jaxpool.tokens import Tokenizer


class Ending:
    """Brings the ids of texts to the end that a family reads.

    Args:
        recipe: the model's.
        tokenizer: the model's.

    Raises:
        ValueError: texts cannot be padded as the model was trained; file and key are named.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        family = recipe.family
        self._end = None if family.end is None else family.end(recipe.config)
        self._length, self._padding = 0, 0
        if family.padding is not None:
            self._length = family.padding(recipe.config)
            self._padding = _padding_token(recipe, tokenizer, self._length)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """int32 [length] -> int32 [length], cut behind its first end token or padded."""
        if self._end is not None:
            ends = np.flatnonzero(ids == self._end)
            ids = ids[: ends[0] + 1] if len(ends) else ids
        missing = max(self._length - len(ids), 0)
        return np.pad(ids, (0, missing), constant_values=self._padding) if missing else ids


def _padding_token(recipe: Recipe, tokenizer: Tokenizer, length: int) -> int:
    file = recipe.backbone_directory / "tokenizer_config.json"
    if recipe.chunked:
        raise ValueError(f"pooler_config: enable_chunked_processing: all texts of this model have {length} tokens")
    if recipe.max_length < length:
        raise ValueError(f"max_model_len is {recipe.max_length}, and all texts of this model have {length} tokens")
    if tokenizer.pad_id is None or not 0 <= tokenizer.pad_id < recipe.config.vocab_size:
        raise ValueError(f"{file}: `pad_token` is no token of the model, whose texts are padded to {length} with it")
    if (read_json(file) if file.exists() else {}).get("padding_side") == "left":
        raise ValueError(f"{file}: `padding_side` is 'left', and texts of this model are padded on the right")
    return tokenizer.pad_id
