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
from jaxpool.heads import Dense, Module, Normalize
from jaxpool.log import once
from jaxpool.models import Family, find_family
from jaxpool.models.hf_config import NUMBER, TEXTS

HFOverrides = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Everything but the weights that decides which vector a text gets.

    Attributes:
        directory: where it was read from.
        architecture: config.json's name for the model.
        family, config: what computes it.
        hf: config.json as a dict (after `hf_overrides`).
        pooling: pooling modes; several are concatenated. "all" keeps every token's vector.
        include_prompt: False leaves a prompt's tokens out of the pooling.
        token_modules: modules on token embeddings, before the pooling.
        modules: modules on the pooled vector.
        max_length: most tokens of a text, special ones included.
        lower_case: lower-case texts before the tokenizer's own normaliser.
        prompts: named texts to put in front; `default_prompt` names the one used unasked.
        truncate_dim: keep the first entries of the finished vector (not normalised again).
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        source: "sentence-transformers" or "defaults", for the reader of the recipe.
        module_folders: where each module's files lie, by its path among the parameters ("tokens/0", "head/1").
    """

    directory: Path
    architecture: str
    family: Family
    config: Any
    hf: Mapping[str, Any] = field(repr=False)
    pooling: tuple[str, ...]
    include_prompt: bool = True
    token_modules: tuple[Module, ...] = ()
    modules: tuple[Module, ...] = ()
    max_length: int = 0
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    truncate_dim: int | None = None
    similarity: str = "cosine"
    source: str = "defaults"
    module_folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def backbone_directory(self) -> Path:
        """Where the transformer's own files lie (config.json, tokenizer, weights)."""
        return st.backbone_directory(self.directory)

    @property
    def ends_normalised(self) -> bool:
        """Whether the last module is Normalize: the step that a request may switch."""
        return bool(self.modules) and isinstance(self.modules[-1], Normalize)

    @property
    def normalised(self) -> bool:
        """Whether the finished vectors have length 1."""
        return self.ends_normalised and self.truncate_dim is None

    @property
    def vector_size(self) -> int:
        """Width of the vector behind the last module."""
        width = self.config.hidden_size
        for module in self.token_modules:
            width = module.outputs if isinstance(module, Dense) else width
        width *= 1 if self.pooling == ("all",) else len(self.pooling)
        for module in self.modules:
            width = module.outputs if isinstance(module, Dense) else width
        return width

    @property
    def embedding_size(self) -> int:
        """Width of the finished vector."""
        return min(self.vector_size, self.truncate_dim or self.vector_size)

    def describe(self) -> dict[str, str]:
        """The recipe as lines of (name, value) for people."""
        prompts = {name: text for name, text in self.prompts.items() if text}
        steps = [type(m).__name__ + (f"({m.inputs}→{m.outputs}, {m.activation})" if isinstance(m, Dense) else "")
                 for m in (*self.token_modules, *self.modules)]  # fmt: skip
        return {
            "architecture": f"{self.architecture} ({self.family.name})",
            "pooling": "+".join(self.pooling) + ("" if self.include_prompt else ", prompt left out"),
            "modules": ", ".join(steps) or "none",
            "normalised": "yes" if self.normalised else "no",
            "embedding size": str(self.embedding_size) + (" (truncated)" if self.truncate_dim else ""),
            "max length": f"{self.max_length} tokens",
            "prompts": ", ".join(f"{k}={v!r}" for k, v in prompts.items()) or "none",
            "default prompt": repr(self.default_prompt) if self.default_prompt else "none",
            "similarity": self.similarity,
            "read from": f"{self.source} files" if self.source != "defaults" else "config.json; pooling by default",
        }


def read_recipe(directory: Path, hf_overrides: HFOverrides | None = None) -> Recipe:
    """Reads a model directory, without its weights.

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
    hf = {**hf, **(hf_overrides or {})}
    TEXTS.check(hf.get("architectures"), config_file, "architectures")
    family, architecture = find_family(hf)
    config = family.config_from_hf(hf)
    recipe = Recipe(directory, architecture, family, config, hf, pooling=(family.pooling,))
    limits = (_tokenizer_length(backbone_dir), config.max_length)
    if st.is_sentence_transformer(directory):
        positions = hf.get("max_position_embeddings")
        fields = st.read(directory, hidden_size=config.hidden_size, limits=(limits[0], positions))
        recipe = replace(recipe, **fields)
    else:
        recipe = replace(recipe, modules=(Normalize(),), max_length=min(n for n in limits if n))
        once(
            f"{directory}: no modules.json, so pooling is vLLM's default for {architecture}: "
            f"{family.pooling}, normalised"
        )
    if recipe.max_length == 0:
        recipe = replace(recipe, max_length=config.max_length)
    if recipe.max_length > config.max_length:
        once(
            f"{directory}: asks for {recipe.max_length} tokens, but the model has {config.max_length} positions; "
            f"texts are cut at {config.max_length}"
        )
        recipe = replace(recipe, max_length=config.max_length)
    return recipe


def _tokenizer_length(directory: Path) -> int | None:
    # transformers writes 1e30 where there is no limit.
    file = directory / "tokenizer_config.json"
    values = read_json(file) if file.exists() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}, expected an object")
    length = values.get("model_max_length")
    NUMBER.check(length, file, "model_max_length")
    return int(length) if length is not None and 0 < length < 1e9 else None
