"""The bodies of requests: OpenAI's, vLLM's, Jina's. Fields that are not known are passed over, as the originals do."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jaxpool.prompts import parse_text

T = TypeVar("T")
# A list that is refused at its first wrong item: a million errors take their time, and the server's from others.
Many = Annotated[list[T], Field(fail_fast=True)]
# Valid Unicode, which a JSON string need not be.
Text = Annotated[str, AfterValidator(lambda text: parse_text(text, "text"))]
Ids = Many[int]
# What may be embedded or classified: a text, token ids, or a list of either.
Input = str | Ids | Many[str] | Many[Ids]
EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]


class Body(BaseModel):
    """What every request may have."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: Text | None = None
    user: str | None = None
    request_id: Text | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None

    @property
    def tokenization(self) -> dict[str, Any]:
        """vLLM's `tokenization_kwargs`."""
        side = self.truncation_side
        return {} if side is None else {"truncation_side": side}


class TextBody(Body):
    """Texts, or a conversation that a chat template makes a text of."""

    input: Input | None = None
    messages: Many[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TextBody:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either `input` or `messages`")
        return self

    @property
    def tokenization(self) -> dict[str, Any]:
        """vLLM's `tokenization_kwargs`: a chat template writes its special tokens itself."""
        special = self.add_special_tokens
        if special is None:
            special = self.messages is None
        return super().tokenization | ({} if special else {"add_special_tokens": False})


class VectorBody(TextBody):
    """How vectors are to be written."""

    encoding_format: EncodingFormat = "float"
    embed_dtype: EmbedDtype = "float32"
    endianness: Endianness = "native"
    dimensions: int | None = None
    normalize: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None
    use_activation: bool | None = None


class EmbeddingBody(VectorBody):
    """`/v1/embeddings`."""


class PoolingBody(VectorBody):
    """`/pooling`."""

    task: str | None = None


class ClassifyBody(TextBody):
    """`/classify`."""

    softmax: bool | None = None
    activation: bool | None = None
    use_activation: bool | None = None


class ScoringBody(Body):
    """What scores and rankings share."""

    instruction: str | None = None
    activation: bool | None = None
    use_activation: bool | None = None


Texts = str | Many[str | dict[str, Any]] | dict[str, Any]
# The spellings of the two sides of a pair, older ones last.
PAIR_FIELDS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


class ScoreBody(ScoringBody):
    """`/score`: the two sides in one of four spellings."""

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None

    @model_validator(mode="after")
    def _one_spelling(self) -> ScoreBody:
        given = {name for pair in PAIR_FIELDS for name in pair if getattr(self, name) is not None}
        if not any(given == set(pair) for pair in PAIR_FIELDS):
            spellings = ", ".join("/".join(pair) for pair in PAIR_FIELDS)
            raise ValueError(f"give both sides in one spelling: {spellings}; got {sorted(given)}")
        return self

    @property
    def sides(self) -> dict[str, Texts]:
        """What was given, by the names of its fields."""
        names = next(pair for pair in PAIR_FIELDS if getattr(self, pair[1]) is not None)
        return {name: getattr(self, name) for name in names}


class RerankBody(ScoringBody):
    """`/rerank`: Jina's and Cohere's."""

    query: str | dict[str, Any]
    documents: Many[str | dict[str, Any]]
    top_n: int | None = 0
    return_documents: bool = True
    max_tokens_per_doc: Annotated[int, Field(ge=0)] | None = None


class TokenizeBody(BaseModel):
    """`/tokenize`: vLLM's with `prompt` or `messages`, TEI's with `inputs`."""

    model: Text | None = None
    prompt: str | None = None
    inputs: Text | Many[Text] | None = None
    prompt_name: str | None = None
    messages: Many[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeBody:
        if sum(given is not None for given in (self.prompt, self.messages, self.inputs)) != 1:
            raise ValueError("give either `prompt` or `messages`, or TEI's `inputs`")
        return self


class DetokenizeBody(BaseModel):
    """`/detokenize`."""

    model: Text | None = None
    tokens: Ids
