"""The bodies of TEI's (text-embeddings-inference's) endpoints, with `model` and `priority` as everywhere here."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from jaxpool.server.protocol import Body, Fields, Ids, Many, Text
from jaxpool.server.vectors import Cut

TeiInput = Text | Ids | Many[Text] | Many[Ids]
# One text or pair, or a list of such lists.
Sequences = Text | Many[Text] | Many[Many[Text]]
Direction = Literal["Left", "Right", "left", "right"]


class TeiBody(Body):
    """What the endpoints that compute may have."""

    @property
    def read(self) -> list[str] | None:
        """The texts that the model reads, each as often as it does; None: it is given token ids."""
        raise NotImplementedError


class Cutting(Fields):
    """What becomes of long texts: cut, unless `truncate` is false."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None

    @property
    def cut(self) -> Cut:
        """The same, as `vectors.embed` takes it."""
        return Cut(self.truncate is not False, self.truncation_direction and self.truncation_direction.lower())


class EmbedAllBody(Cutting, TeiBody):
    """`/embed_all`."""

    inputs: TeiInput
    prompt_name: str | None = None

    @property
    def read(self) -> list[str] | None:
        """As `TeiBody.read`."""
        given = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        texts = [text for text in given if isinstance(text, str)]
        return texts if len(texts) == len(given) else None


class EmbedBody(EmbedAllBody):
    """`/embed`."""

    normalize: bool = True
    dimensions: int | None = None


class SimilarityInputs(Fields):
    """Of `/similarity`."""

    source_sentence: Text
    sentences: Many[Text]


class SimilarityParameters(Cutting):
    """Of `/similarity`."""

    prompt_name: str | None = None


class SimilarityBody(TeiBody):
    """`/similarity`."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None

    @property
    def read(self) -> list[str] | None:
        """As `TeiBody.read`."""
        others = self.inputs.sentences
        return [self.inputs.source_sentence, *others] if others else []


class PredictBody(Cutting, TeiBody):
    """`/predict`: a text, a pair of texts, or a list of lists of one text or two."""

    inputs: Sequences
    raw_scores: bool = False

    @field_validator("inputs")
    @classmethod
    def _texts_or_pairs(cls, inputs: Sequences) -> Sequences:
        if inputs == []:
            return inputs  # said as for every list of texts
        batch = inputs if isinstance(inputs, list) and isinstance(inputs[0], list) else [inputs]
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
    def read(self) -> list[str] | None:
        """As `TeiBody.read`."""
        return [text for sequence in self.sequences for text in sequence]

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list of lists."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)


class TeiRerankBody(Cutting, TeiBody):
    """`/rerank` with `texts`."""

    query: Text
    texts: Many[Text]
    raw_scores: bool = False
    return_text: bool = False

    @property
    def read(self) -> list[str] | None:
        """As `TeiBody.read`."""
        return [text for own in self.texts for text in (self.query, own)]


class DecodeBody(Fields):
    """`/decode`."""

    model: str | None = None
    ids: Ids | Many[Ids]
    skip_special_tokens: bool = True
