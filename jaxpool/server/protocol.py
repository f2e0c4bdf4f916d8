"""The bodies of requests: OpenAI's, vLLM's, Jina's. Fields that nobody knows are passed over, as the originals do."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from jaxpool.prompts import parse_text

T = TypeVar("T")
# A list that is refused at its first wrong item: a million errors take their time, and the server's from others.
Many = Annotated[list[T], Field(fail_fast=True)]
# Valid Unicode, which a JSON string need not be.
Text = Annotated[str, AfterValidator(lambda text: parse_text(text, "text"))]
# An id that is no number is none: `["1", 2]` would be read as ids otherwise.
Id = Annotated[int, Strict()]
Ids = Many[Id]
# What may be embedded or classified: a text, token ids, or a list of either.
Input = str | Ids | Many[str] | Many[Ids]
EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]


class Fields(BaseModel):
    """An object of a request. A field that is null is one that is not there, as OpenAI reads it and clients count on.

    Attributes:
        missing: fields of the originals that would change the answer, and that there are not here.

    Raises:
        ValueError: one of `missing` is asked for.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    missing: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _given(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        found = {name: value for name, value in given.items() if value is not None}
        if asked := sorted(name for name in cls.missing & found.keys() if found[name]):
            raise ValueError(f"{', '.join(asked)}: not supported here, and without it the answer would be another")
        return found


class Body(Fields):
    """What every request may have."""

    missing = frozenset({"media_io_kwargs"})

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


Messages = Many[dict[str, Any]]


class TextBody(Body):
    """Texts, or conversations that a chat template makes texts of; these may stand in `input` too, as in vLLM."""

    missing = Body.missing | {"late_chunking_params", "late_chunking"}

    input: Input | None = None
    messages: Messages | Many[Messages] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _messages_as_input(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("messages") or not _are_messages(given.get("input")):
            return given
        return {**given, "input": None, "messages": given["input"]}

    @model_validator(mode="after")
    def _one_of_both(self) -> TextBody:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either `input` or `messages`")
        return self

    @property
    def several(self) -> bool:
        """Whether `messages` are several conversations."""
        return bool(self.messages) and isinstance((self.messages or [])[0], list)

    @property
    def conversations(self) -> list[Any]:
        """Each with its messages."""
        return list(self.messages or ()) if self.several else [self.messages or []]

    @property
    def tokenization(self) -> dict[str, Any]:
        """vLLM's `tokenization_kwargs`: a chat template writes its special tokens itself."""
        special = self.add_special_tokens
        if special is None:
            special = self.messages is None
        return super().tokenization | ({} if special else {"add_special_tokens": False})


def _are_messages(given: Any) -> bool:
    """Whether an `input` is a conversation, or a list of them."""
    first = given[0] if isinstance(given, list) and given else None
    return isinstance(first, dict) or (isinstance(first, list) and bool(first) and isinstance(first[0], dict))


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


# 0: no limit, as in vLLM.
TokenLimit = Annotated[int, Field(ge=0)]


class ScoringBody(Body):
    """What scores and rankings share.

    Raises:
        ValueError: an instruction that is no text, or two.
    """

    missing = Body.missing | {"chat_template"}

    instruction: Text | None = None
    max_tokens_per_query: TokenLimit = 0
    max_tokens_per_doc: TokenLimit = 0
    activation: bool | None = None
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _one_instruction(self) -> ScoringBody:
        other = (self.chat_template_kwargs or {}).get("instruction")
        if other is None:
            return self
        if not isinstance(other, str):
            raise ValueError("chat_template_kwargs: `instruction` has to be a text")
        if self.instruction not in (None, other):
            raise ValueError("`instruction` is said twice, and `chat_template_kwargs` says another")
        self.instruction = parse_text(other, "chat_template_kwargs.instruction")
        return self


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

    missing = ScoringBody.missing | {"rank_fields", "max_chunks_per_doc"}

    query: str | dict[str, Any]
    documents: Many[str | dict[str, Any]]
    top_n: int = 0
    return_documents: bool = True


class TokenizeBody(Fields):
    """`/tokenize`: vLLM's with `prompt` or `messages`, TEI's with `inputs`."""

    model: Text | None = None
    prompt: str | None = None
    inputs: Text | Many[Text] | None = None
    prompt_name: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeBody:
        if sum(given is not None for given in (self.prompt, self.messages, self.inputs)) != 1:
            raise ValueError("give either `prompt` or `messages`, or TEI's `inputs`")
        return self


class DetokenizeBody(Fields):
    """`/detokenize`."""

    model: Text | None = None
    tokens: Ids
