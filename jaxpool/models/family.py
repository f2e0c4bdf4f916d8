"""What a model family is: one record that the rest of jaxpool reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import jax

from jaxpool.batch import Arrays, Batch, take
from jaxpool.converters.rules import Table
from jaxpool.heads import Module
from jaxpool.images.format import PictureFormat
from jaxpool.params import Tree


class Output(NamedTuple):
    """What a backbone returns.

    Attributes:
        hidden: the last hidden states [R, W, D], in the compute dtype, of the tokens that the batch wants (all T, if it
            names none).
        captured: the intermediates asked for by `capture=`, by name; per-layer ones are stacked [L, R, T, …].
    """

    hidden: jax.Array
    captured: dict[str, jax.Array]


class Config(Protocol):
    """What every family's frozen config offers beside its own fields."""

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding table."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens a sequence may have."""
        ...

    @property
    def activation_bytes_per_token(self) -> int:
        """float32 bytes that one token's widest stage keeps alive, attention scores left out."""
        ...


@dataclass(frozen=True)
class Head:
    """What an architecture has behind its backbone.

    Attributes:
        rules: the name, among the `heads` of the family's rule table, of where its weights come from.
        modules: the chain that is applied to a pooled vector, or to every token's.
        task: what the architecture is for: "classify" (one answer a text) or "token_classify" (one a token).
        activation: the last step, by its name in `heads.FINAL`; None: what config.json says (`activations.py`).
        pooling: of one answer a text, if not the family's own.
        step: whether of every token's answers only those at a tag are wanted (a process reward model's).
        step_tag_id: the tag, where it is always the same.
    """

    rules: str
    modules: tuple[Module, ...]
    task: str = "classify"
    activation: str | None = None
    pooling: str | None = None
    step: bool = False
    step_tag_id: int | None = None


class Patches(NamedTuple):
    """What a tower takes.

    Attributes:
        length: patches of every picture (or tile of one); where they differ, the most.
        fixed: whether all have that many.
        arrays: what every patch has: `pixels`, and where it lies.
    """

    length: int
    fixed: bool
    arrays: Arrays


@dataclass(frozen=True, eq=False)
class Tower:
    """How a family sees: a picture is a sequence of patches as a text is one of tokens.

    Attributes:
        patches: (config, what the checkpoint says about pictures) -> what it takes.
        forward: (params, batch, config, *, capture=()) -> `Output`. `hidden` is one vector a picture [R, M, C] where
            pictures are answered by themselves, otherwise the rows that stand among a text's tokens [R, P / k, D].
        captures: the names that `capture=` accepts.
        text: (config, dtype) -> what goes with the tokens of a text with pictures: `features`, their rows, and where
            it takes them from; None where pictures are answered by themselves.
    """

    patches: Callable[[Any, PictureFormat], Patches]
    forward: Callable[..., Output]
    captures: tuple[str, ...] = ()
    text: Callable[[Any, Any], Arrays] | None = None

    @property
    def answers(self) -> bool:
        """Whether a picture is answered by itself, as CLIP does."""
        return self.text is None


@dataclass(frozen=True, eq=False)  # compared by identity: a static argument of jitted functions
class Family:
    """One model family.

    Attributes:
        name: of the file in `models/` and of its twin in `converters/`.
        architectures: names in config.json's `architectures` that this family's backbone answers for.
        model_types: config.json's `model_type`s, where `architectures` is missing.
        config_from_hf: config.json as a dict -> frozen config; unknown attributes are errors.
        param_specs: config -> nested dict of `ParamSpec`s.
        forward: (params, batch, config, *, capture=()) -> `Output`.
        pooling: the pooling of a checkpoint that says nothing: "cls" for encoders, "lasttoken" for decoders.
        captures: the names that `capture=` accepts.
        picks: whether `forward` leaves out what only unwanted tokens need and returns the wanted ones (`batch.wanted`).
            One that does not know of them is given none, and `run` picks.
        heads: architecture -> (config, config.json) -> its head; these architectures' backbone is the family's too.
        extras: config -> specs of weights that no answer needs; `load` and `convert` keep them.
        answers: config.json -> whether such an architecture is this family's after all, where a name says too little.
        own_modules: types in modules.json that are the checkpoint's own code, whose work the family does itself:
            type -> the module of sentence-transformers that it stands for.
        tower: how it sees; None for families that only read.
        end: config -> the token at which a text is over, whatever comes behind it (CLIP pools its first one); None: a
            text ends where it ends.
        padding: config -> the length to which every text is padded with the tokenizer's padding token, which is read
            like others (SigLIP); None for none.
        table: the checkpoint's rules; None for `converters/<name>.py`'s (jaxpool's own families).
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    config_from_hf: Callable[[dict[str, Any]], Any]
    param_specs: Callable[[Any], Tree]
    forward: Callable[..., Output]
    pooling: str
    captures: tuple[str, ...]
    picks: bool = False
    heads: Mapping[str, Callable[[Any, Mapping[str, Any]], Head]] = field(default_factory=dict)
    extras: Callable[[Any], Tree] = lambda config: {}
    answers: Callable[[Mapping[str, Any]], bool] = lambda values: True
    own_modules: Mapping[str, str] = field(default_factory=dict)
    tower: Tower | None = None
    end: Callable[[Any], int] | None = None
    padding: Callable[[Any], int] | None = None
    table: Table | None = None

    @property
    def all_architectures(self) -> tuple[str, ...]:
        """Those with a head included."""
        return (*self.architectures, *self.heads)

    def run(self, params: Tree, batch: Batch, config: Any, capture: tuple[str, ...] = ()) -> Output:
        """The states of a batch's wanted tokens, and what is captured.

        Raises:
            ValueError: a name that it does not know to capture, or one of a batch of which not every token is wanted; a
                `forward` that picks, it is said, and does not.
        """
        if unknown := set(capture) - set(self.captures):
            raise ValueError(f"capture: {sorted(unknown)} unknown to {self.name}; it offers {list(self.captures)}")
        if batch.wanted is None:
            return self.forward(params, batch, config, capture=capture)
        if capture:
            raise ValueError(f"capture={capture} needs a batch of which every token is wanted")
        if not self.picks:
            hidden = self.forward(params, replace(batch, wanted=None), config).hidden
            return Output(take(hidden, batch.wanted), {})
        output = self.forward(params, batch, config)
        if output.hidden.shape[1] != batch.wanted.shape[1]:
            raise ValueError(f"family {self.name!r}: `forward` returns every token's states, so `picks` must be False")
        return output
