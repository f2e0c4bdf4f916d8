"""Cohere's `/v2/embed` and `/v1/embed`: a body, its `input_type` to a checkpoint, types of vectors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from jaxpool.recipe import Recipe
from jaxpool.server.errors import ApiError
from jaxpool.server.pictures import Content
from jaxpool.server.protocol import Body, Many
from jaxpool.server.vectors import Cut

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
# Their vectors hold eight entries a byte.
PACKED = frozenset({"binary", "ubinary"})
CUTS: Mapping[str, Cut] = {"NONE": Cut(False), "START": Cut(True, "left"), "END": Cut(True, "right")}
# The two sides of a search, by Cohere's names -> what checkpoints call their prompts.
SIDES = {
    "search_query": ("search_query", "query", "retrieval.query"),
    "search_document": ("search_document", "document", "passage", "corpus", "retrieval.passage"),
}
INPUT_TYPES = (*SIDES, "classification", "clustering")


class CohereBody(Body):
    """`/v2/embed` and `/v1/embed`."""

    texts: Many[str] | None = None
    inputs: Many[dict[str, Any]] | None = None
    images: Many[str] | None = None
    input_type: str | None = None
    embedding_types: Many[EmbeddingType] | None = None
    output_dimension: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"

    @model_validator(mode="after")
    def _one_of_three(self) -> CohereBody:
        given = [name for name in ("texts", "images", "inputs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `texts`, `images` and `inputs`; got {given}")
        return self

    @property
    def documents(self) -> list[str]:
        """The texts, in whichever field. Raises ValueError for what is no text."""
        if self.images is not None:
            raise ValueError("`images`: this model takes texts only")
        if self.texts is not None:
            return self.texts
        return [_text(given, f"inputs[{i}]") for i, given in enumerate(self.inputs or ())]

    @property
    def contents(self) -> list[Content]:
        """What may hold pictures: the content of each of `images` or `inputs`. Raises ValueError for what has none."""
        if self.images is not None:
            linked = ({"type": "image_url", "image_url": {"url": url}} for url in self.images)
            return [Content([part], f"images[{i}]", alone=True) for i, part in enumerate(linked)]
        return [
            Content(_parts(given, f"inputs[{i}]"), f"inputs[{i}].content") for i, given in enumerate(self.inputs or ())
        ]

    @property
    def types(self) -> tuple[EmbeddingType, ...]:
        """The types of vectors asked for, each once."""
        return tuple(dict.fromkeys(self.embedding_types or ("float",)))

    def cut(self, longest: int) -> Cut:
        """What becomes of long texts of a model that takes `longest` tokens."""
        kind = CUTS[self.truncate]
        return kind if self.max_tokens is None else Cut(kind.cut, kind.side, min(self.max_tokens, longest))


def prompt_name(recipe: Recipe, input_type: str) -> str | None:
    """The prompt that an `input_type` means; None: nothing is put in front.

    It is the checkpoint's prompt of that name, and for the two sides of a search also what checkpoints call it. One
    that has a prompt for one side only leaves the other side's texts as they are; and one that has no prompt at all
    needs none for any type of Cohere's.

    Raises:
        ApiError: 400, no such prompt; the types that there are are listed.
    """
    known: dict[str, str | None] = {} if any(recipe.prompts.values()) else dict.fromkeys(INPUT_TYPES)
    sides = {side: _first_of(names, recipe.prompts) for side, names in SIDES.items()}
    if any(sides.values()):
        known |= sides
    known |= {name: name for name in recipe.prompts}
    if input_type not in known:
        listed = ", ".join(known) or "none"
        raise ApiError(
            400, f"Unsupported input_type {input_type!r}. Supported input types: {listed}", param="input_type"
        )
    return known[input_type]


def _first_of(names: tuple[str, ...], prompts: Mapping[str, str]) -> str | None:
    """The first of the names that has a prompt. sentence-transformers names empty ones unasked: those come last."""
    there = [name for name in names if name in prompts]
    return next((name for name in there if prompts[name]), there[0] if there else None)


def check_packs(width: int, types: tuple[EmbeddingType, ...]) -> None:
    """Raises ApiError where a type packs eight entries a byte, and `width` entries fill no whole number of them."""
    if width % 8 and (packed := PACKED.intersection(types)):
        raise ApiError(
            400,
            f"embedding_types {sorted(packed)} need vectors whose size is a multiple of 8, and these have {width}",
            param="embedding_types",
        )


def encode(vectors: np.ndarray, kind: EmbeddingType) -> Any:
    """Vectors float32 [n, D] as one of Cohere's types.

    * "float": as they are;
    * "base64": float32, little-endian;
    * "int8": of the vector scaled to length 1, round(127·x): −127 … 127. The scale is the same for all vectors, so
      their dot products keep their order, and x ≈ value / 127;
    * "uint8": the same plus 128: 1 … 255;
    * "ubinary": a bit an entry, 1 where x ≥ 0, the first entry in a byte's highest bit;
    * "binary": the same bytes minus 128, as int8.

    Returns:
        An array [n, D or D / 8], or a list of texts for base64.
    """
    return _ENCODINGS[kind](vectors)


def _int8(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(norms, 1e-12)).clip(-127, 127).astype(np.int8)


def _uint8(vectors: np.ndarray) -> np.ndarray:
    return (_int8(vectors).astype(np.int16) + 128).astype(np.uint8)


def _ubinary(vectors: np.ndarray) -> np.ndarray:
    return np.packbits(vectors >= 0, axis=-1)


def _binary(vectors: np.ndarray) -> np.ndarray:
    return (_ubinary(vectors).astype(np.int16) - 128).astype(np.int8)


def _base64(vectors: np.ndarray) -> list[str]:
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]


_ENCODINGS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "float": np.ascontiguousarray,
    "int8": _int8,
    "uint8": _uint8,
    "binary": _binary,
    "ubinary": _ubinary,
    "base64": _base64,
}


def _parts(given: Mapping[str, Any], name: str) -> list[Any]:
    parts = given.get("content")
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"{name}: expected {{'content': [{{'type': 'text', 'text': …}}]}}")
    return parts


def _text(given: Mapping[str, Any], name: str) -> str:
    parts = _parts(given, name)
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{name}: parts of type {kind!r} are not supported, this model takes texts only")
    return "\n".join(part["text"] for part in parts)
