"""The bodies of TEI's (text-embeddings-inference's) endpoints, with `model` and `priority` as everywhere here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, field_validator

from jaxpool.server.protocol import Body, Ids, Input, Many, Text
from jaxpool.server.vectors import Cut

# One text or pair, or a list of such lists.
Sequences = Text | Many[Text] | Many[Many[Text]]
Direction = Literal["Left", "Right", "left", "right"]


class Cutting(BaseModel):
    """What becomes of long texts: cut, unless `truncate` is false."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None

    @property
    def cut(self) -> Cut:
        """The same, as `vectors.embed` takes it."""
        return Cut(self.truncate is not False, self.truncation_direction and self.truncation_direction.lower())


class EmbedAllBody(Cutting, Body):
    """`/embed_all`."""

    inputs: Input
    prompt_name: str | None = None


class EmbedBody(EmbedAllBody):
    """`/embed`."""

    normalize: bool = True
    dimensions: int | None = None


class SimilarityInputs(BaseModel):
    """Of `/similarity`."""

    source_sentence: str
    sentences: Many[str]


class SimilarityParameters(Cutting):
    """Of `/similarity`."""

    prompt_name: str | None = None


class SimilarityBody(Body):
    """`/similarity`."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class PredictBody(Cutting, Body):
    """`/predict`: a text, a pair of texts, or a list of lists of one text or two."""

    inputs: Sequences
    raw_scores: bool = False

    @field_validator("inputs")
    @classmethod
    def _texts_or_pairs(cls, inputs: Sequences) -> Sequences:
        batch = inputs if isinstance(inputs, list) and inputs and isinstance(inputs[0], list) else [inputs]
        if wrong := [len(given) for given in batch if isinstance(given, list) and len(given) not in (1, 2)]:
            raise ValueError(
                f"expected a text, [text], [text, text], or a list of such lists; got a list of {wrong[0]} texts"
            )
        return inputs

    @property
    def sequences(self) -> list[list[str]]:
        """Texts as [text], pairs as [first, second]."""
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        lists = [given for given in self.inputs if isinstance(given, list)]
        return lists or [[given for given in self.inputs if isinstance(given, str)]]

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list of lists."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)


class TeiRerankBody(Cutting, Body):
    """`/rerank` with `texts`."""

    query: str
    texts: Many[str]
    raw_scores: bool = False
    return_text: bool = False


class DecodeBody(BaseModel):
    """`/decode`."""

    model: str | None = None
    ids: Ids | Many[Ids]
    skip_special_tokens: bool = True
