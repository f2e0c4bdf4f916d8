"""What the methods of `LLM` return: vLLM's classes and fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

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
class RequestOutput(Generic[T]):
    """The answer to one prompt.

    Attributes:
        request_id: "0", "1", … in the order of the instance's requests.
        outputs: the answer itself.
        prompt_token_ids: what the model read.
        finished: always True here.
    """

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    finished: bool = True


class PoolingRequestOutput(RequestOutput[PoolingOutput]):
    """The answer of `LLM.encode`."""


class EmbeddingRequestOutput(RequestOutput[EmbeddingOutput]):
    """The answer of `LLM.embed`."""

    @classmethod
    def from_base(cls, request: PoolingRequestOutput) -> EmbeddingRequestOutput:
        """From `LLM.encode`'s answer."""
        return cls(
            request.request_id,
            EmbeddingOutput.from_base(request.outputs),
            request.prompt_token_ids,
            request.finished,
        )
