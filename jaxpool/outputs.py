"""What the methods of `LLM` return: vLLM's classes and fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(eq=False)
class PoolingOutput:
    """What the instance's pooler extracted.

    Attributes:
        data: float32, [D] for a pooled vector, [T, D] for a vector a token.
    """

    data: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoolingOutput) and np.array_equal(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class EmbeddingOutput:
    """An embedding.

    Attributes:
        embedding: D floats.
    """

    embedding: list[float]

    @classmethod
    def from_base(cls, output: PoolingOutput) -> EmbeddingOutput:
        """From a pooled vector.

        Raises:
            ValueError: the data is not one vector.
        """
        if output.data.ndim != 1:
            raise ValueError("pooled_data should be a 1-D embedding vector")
        return cls(output.data.tolist())

    @property
    def hidden_size(self) -> int:
        """Width of the embedding."""
        return len(self.embedding)

    def __repr__(self) -> str:
        return f"EmbeddingOutput(hidden_size={self.hidden_size})"


@dataclass
class ClassificationOutput:
    """A classifier's answer.

    Attributes:
        probs: one number a class.
    """

    probs: list[float]

    @classmethod
    def from_base(cls, output: PoolingOutput) -> ClassificationOutput:
        """From a pooled vector.

        Raises:
            ValueError: the data is not one vector.
        """
        if output.data.ndim != 1:
            raise ValueError("pooled_data should be a 1-D probability vector")
        return cls(output.data.tolist())

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.probs)

    def __repr__(self) -> str:
        return f"ClassificationOutput(num_classes={self.num_classes})"


@dataclass
class ScoringOutput:
    """How well two texts go together.

    Attributes:
        score: a cosine, or what the cross-encoder says.
    """

    score: float

    @classmethod
    def from_base(cls, output: PoolingOutput) -> ScoringOutput:
        """From a pooled number.

        Raises:
            ValueError: the data is more than one number.
        """
        if output.data.size != 1:
            raise ValueError("pooled_data should be a scalar score")
        return cls(float(output.data.reshape(())))

    def __repr__(self) -> str:
        return f"ScoringOutput(score={self.score})"


@dataclass
class RequestOutput(Generic[T]):
    """The answer to one prompt.

    Attributes:
        request_id: "0", "1", … in the order of the instance's requests.
        outputs: the answer itself.
        prompt_token_ids: what the model read.
        finished: always True here.
        num_cached_tokens: always 0 here: there is no cache.
    """

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0


class PoolingRequestOutput(RequestOutput[PoolingOutput]):
    """The answer of `LLM.encode` and `LLM.reward`."""


class EmbeddingRequestOutput(RequestOutput[EmbeddingOutput]):
    """The answer of `LLM.embed`."""

    @classmethod
    def from_base(cls, request: PoolingRequestOutput) -> EmbeddingRequestOutput:
        """From `LLM.encode`'s answer."""
        return cls(**_around(request), outputs=EmbeddingOutput.from_base(request.outputs))


class ClassificationRequestOutput(RequestOutput[ClassificationOutput]):
    """The answer of `LLM.classify`."""

    @classmethod
    def from_base(cls, request: PoolingRequestOutput) -> ClassificationRequestOutput:
        """From `LLM.encode`'s answer."""
        return cls(**_around(request), outputs=ClassificationOutput.from_base(request.outputs))


class ScoringRequestOutput(RequestOutput[ScoringOutput]):
    """The answer of `LLM.score`."""

    @classmethod
    def from_base(cls, request: PoolingRequestOutput) -> ScoringRequestOutput:
        """From `LLM.encode`'s answer."""
        return cls(**_around(request), outputs=ScoringOutput.from_base(request.outputs))


def _around(request: PoolingRequestOutput) -> dict[str, Any]:
    """All of a request's fields but the answer."""
    return {f.name: getattr(request, f.name) for f in fields(request) if f.name != "outputs"}
