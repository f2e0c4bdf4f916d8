"""The recipe: what a checkpoint directory says about itself, resolved once and printable.

Here are the parts that every checkpoint has; `sentence_transformers.py` reads the files of that library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxpool import sentence_transformers as st
from jaxpool.converters.checkpoint import read_json
from jaxpool.converters.transforms import TokenRows
from jaxpool.head_choice import Source, choose
from jaxpool.heads import Dense, Module, chain_width
from jaxpool.hf_overrides import HFOverrides, override
from jaxpool.images.format import PictureFormat, read_format
from jaxpool.log import once
from jaxpool.models import Family, find_family
from jaxpool.models.hf_config import NUMBER, TEXTS
from jaxpool.tasks import AUTO, EMBED, PER_TOKEN, SIBLINGS, TOKEN_EMBED


@dataclass(frozen=True)
class Recipe:
    """Everything but the weights that decides which answer a text gets.

    Attributes:
        directory: where it was read from.
        architecture: config.json's name for the model.
        family, config: what computes its backbone.
        hf: config.json as a dict (after `hf_overrides`).
        task: what an instance answers if nothing else is asked: one of `tasks.TASKS`.
        pooling: pooling modes of one answer a text; several are concatenated.
        include_prompt: False leaves a prompt's tokens out of the pooling.
        token_modules: modules on token embeddings, before the pooling.
        modules: modules on the pooled vector, or on every token's.
        final: the last step, by its name in `heads.FINAL`: "normalize" for embeddings, a classifier's activation.
        activate: whether the last step is done unless a request says otherwise.
        activate_texts: the same for one answer a text, where that differs from every token's; None: it does not.
        head_rules: where the modules' weights lie in the backbone's own files: the name of rules in the family's
            table, or rows of the language model's head; None: in `module_folders`.
        step: whether of every token's answers only those at `step_tag_id` are given.
        step_tag_id: the token that ends a step; None keeps every token's answer.
        template: of a language model that scores pairs: its prompt in jinja; None: the texts alone.
        chat: whether that prompt has all its special tokens, so that the tokenizer adds none.
        generation_prompt: what the template is told of `add_generation_prompt`.
        separated: whether a pair's texts are put together by the tokenizer, as a cross-encoder's.
        max_length: most tokens of a text, special ones included.
        chunked: whether longer texts are embedded in parts (up to `max_embed_len` tokens) and averaged.
        max_embed_len: most tokens of such a text; None: any number.
        lower_case: lower-case texts before the tokenizer's own normaliser.
        prompts: named texts to put in front; `default_prompt` names the one used unasked.
        dimensions: entries to keep before normalising, if a request does not say; None for all.
        truncate_dim: keep the first entries of the finished vector (not normalised again).
        quantization: how the layers' kernels are held: a name of `quantization.KINDS`, or None for as they are.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        source: "sentence-transformers" or "defaults", for the reader of the recipe.
        pictures: what is done to pictures before a tower sees them; of families that see.
        module_folders: where each module's files lie, by its path among the parameters ("tokens/0", "head/1").
    """

    directory: Path
    architecture: str
    family: Family
    config: Any
    hf: Mapping[str, Any] = field(repr=False)
    task: str
    pooling: tuple[str, ...]
    include_prompt: bool = True
    token_modules: tuple[Module, ...] = ()
    modules: tuple[Module, ...] = ()
    final: str = "normalize"
    activate: bool = False
    activate_texts: bool | None = None
    head_rules: str | TokenRows | None = None
    step: bool = False
    step_tag_id: int | None = None
    template: str | None = field(default=None, repr=False)
    chat: bool = False
    generation_prompt: bool = False
    separated: bool = True
    max_length: int = 0
    chunked: bool = False
    max_embed_len: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dimensions: int | None = None
    truncate_dim: int | None = None
    quantization: str | None = None
    similarity: str = "cosine"
    source: str = "defaults"
    module_folders: Mapping[str, str] = field(default_factory=dict)
    pictures: PictureFormat = field(default_factory=PictureFormat)

    @property
    def backbone_directory(self) -> Path:
        """Where the transformer's own files lie (config.json, tokenizer, weights)."""
        return st.backbone_directory(self.directory)

    @property
    def embeds(self) -> bool:
        """Whether the answers are embeddings, and not a classifier's or a reward model's values."""
        return self.task in (EMBED, TOKEN_EMBED)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be asked of the model: its own task, and the other of the same head where the widths allow it."""
        if self.embeds and len(self.pooling) > 1 and self.modules:
            return (self.task,)  # the modules take the concatenated vector, which no token has
        if not self.embeds and not self.modules:
            return (self.task,)  # rewards that are hidden states: there are no classes
        return (self.task, SIBLINGS[self.task])

    @property
    def normalised(self) -> bool:
        """Whether the finished vectors have length 1."""
        return self.final == "normalize" and self.activate and self.truncate_dim is None

    @property
    def picture_format(self) -> PictureFormat:
        """`pictures`, with the room that a text has."""
        return replace(self.pictures, room=self.max_length)

    def activates(self, task: str) -> bool:
        """Whether the last step is done in answers to `task`, unless a request says otherwise."""
        return self.activate if task in PER_TOKEN or self.activate_texts is None else self.activate_texts

    def width(self, task: str) -> int:
        """Entries behind the last module in an answer to `task`."""
        width = chain_width(self.token_modules, self.config.hidden_size)
        width *= 1 if task in PER_TOKEN else len(self.pooling)
        return chain_width(self.modules, width)

    @property
    def vector_size(self) -> int:
        """Width of the vector behind the last module."""
        return self.width(self.task)

    @property
    def embedding_size(self) -> int:
        """Width of the finished vector."""
        return min(self.vector_size, self.truncate_dim or self.vector_size)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that a request may choose from; the last is the default, as in vLLM."""
        return tuple(getattr(self.config, "adapters", ()))

    def describe(self) -> dict[str, str]:
        """The recipe as lines of (name, value) for people."""
        prompts = {name: text for name, text in self.prompts.items() if text}
        steps = [type(m).__name__ + (f"({m.inputs}→{m.outputs}, {m.activation})" if isinstance(m, Dense) else "")
                 for m in (*self.token_modules, *self.modules)]  # fmt: skip
        steps += [self.final.capitalize()] * (self.activate and self.final != "identity")
        lines = {
            "architecture": f"{self.architecture} ({self.family.name})",
            "task": f"{self.task} (also {', '.join(self.tasks[1:])})" if self.tasks[1:] else self.task,
            "pooling": "+".join(self.pooling) + ("" if self.include_prompt else ", prompt left out"),
            "modules": ", ".join(steps) or "none",
        }
        if self.task in PER_TOKEN:
            step = f" of those that are {self.step_tag_id}" if self.step and self.step_tag_id is not None else ""
            lines["pooling"] = f"every token{step}"
        if self.embeds:
            lines |= {
                "normalised": "yes" if self.normalised else "no",
                "embedding size": str(self.embedding_size) + (" (truncated)" if self.truncate_dim else ""),
            }
        else:
            lines |= {"activation": self.final if self.activate else "none", "classes": str(self.vector_size)}
            lines["pairs"] = "by its prompt" if self.template else "separated" if self.separated else "one text"
        if self.adapters:
            lines["adapters"] = ", ".join(self.adapters)
        return lines | {
            "max length": f"{self.max_length} tokens" + (", longer texts in parts" if self.chunked else ""),
            "prompts": ", ".join(f"{k}={v!r}" for k, v in prompts.items()) or "none",
            "default prompt": repr(self.default_prompt) if self.default_prompt else "none",
            **({"similarity": self.similarity} if self.embeds else {}),
            "read from": f"{self.source} files" if self.source != "defaults" else "config.json; the rest by default",
        }


def read_recipe(directory: Path, hf_overrides: HFOverrides | None = None, task: str = AUTO) -> Recipe:
    """Reads a model directory, without its weights.

    Args:
        directory: of the model.
        hf_overrides: attributes to put over config.json's, or a function from config to config.
        task: "auto", "score" or one of `tasks.TASKS` (`tasks.asked_task` makes it of vLLM's arguments).

    Raises:
        FileNotFoundError: `directory` has no config.json.
        ValueError: a file is broken, or says something that jaxpool does not compute; file and key are named.
    """
    backbone_dir = st.backbone_directory(directory)
    config_file = backbone_dir / "config.json"
    if not config_file.exists():
        raise FileNotFoundError(f"{directory} is no model directory: it has no {config_file.relative_to(directory)}")
    hf = read_json(config_file)
    if not isinstance(hf, dict):
        raise ValueError(f"{config_file} holds a {type(hf).__name__}, expected an object")
    hf = override(hf, hf_overrides)
    TEXTS.check(hf.get("architectures"), config_file, "architectures")
    family, architecture = find_family(hf)
    config = family.config_from_hf(hf)
    limits = (_tokenizer_length(backbone_dir), config.max_length)
    saved: dict[str, Any] = {}
    if st.is_sentence_transformer(directory):
        saved = st.read(
            directory,
            hidden_size=config.hidden_size,
            limits=(limits[0], hf.get("max_position_embeddings")),
            own_modules=family.own_modules,
            vectors=_own_vectors(family, config),
        )
    chosen = choose(task, Source(backbone_dir, hf, family, architecture, config, saved))
    lengths = {name: saved[name] for name in ("max_length", "lower_case") if name in saved}
    if family.tower is not None:
        chosen["pictures"] = read_format(backbone_dir)
    recipe = Recipe(directory, architecture, family, config, hf, **lengths | chosen)
    if recipe.max_length == 0:
        recipe = replace(recipe, max_length=min(n for n in limits if n) if not saved else config.max_length)
    if recipe.max_length > config.max_length:
        once(
            f"{directory}: asks for {recipe.max_length} tokens, but the model has {config.max_length} positions; "
            f"texts are cut at {config.max_length}"
        )
        recipe = replace(recipe, max_length=config.max_length)
    return recipe


def _own_vectors(family: Family, config: Any) -> st.Vectors | None:
    """How a family that embeds pictures by themselves embeds a text."""
    if family.tower is None or not family.tower.answers:
        return None
    return st.Vectors(family.pooling, None if family.padding is None else family.padding(config))


def _tokenizer_length(directory: Path) -> int | None:
    # transformers writes 1e30 where there is no limit.
    file = directory / "tokenizer_config.json"
    values = read_json(file) if file.exists() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}, expected an object")
    length = values.get("model_max_length")
    NUMBER.check(length, file, "model_max_length")
    return int(length) if length is not None and 0 < length < 1e9 else None
