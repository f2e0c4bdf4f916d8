"""`load`: a checkpoint as a pure function and a plain Flax param tree, for notebooks and research code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool import hub
from jaxpool.batch import Inputs
from jaxpool.endings import Ending
from jaxpool.hf_overrides import HFOverrides
from jaxpool.loading import load_stored
from jaxpool.params import Tree, map_leaves
from jaxpool.pooling_params import PoolingParams
from jaxpool.program import make_program
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.tasks import AUTO, PER_TOKEN, asked_task
from jaxpool.tokens import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from flax import linen


@dataclass(frozen=True)
class Model:
    """A model without an engine round it.

    Attributes:
        recipe: what the checkpoint says about itself.
        params: its weights as a nested dict in Flax naming: `backbone`, and `tokens` and `head` where there are any.
    """

    recipe: Recipe
    params: Tree
    _tokenizer: Tokenizer

    def tokenize(self, texts: Sequence[str], *, prompt: str = "") -> Inputs:
        """Texts -> what `apply` takes: one a row, cut at the recipe's max length, padded to the longest.

        Args:
            texts: n texts.
            prompt: to put in front of each.

        Returns:
            `Inputs` of n rows of T tokens, numpy.
        """
        encoded = self._tokenizer.encode([prompt + text for text in texts], self.recipe.max_length)
        ending = Ending(self.recipe, self._tokenizer)
        ids = [ending(text.ids) for text in encoded]
        longest = max(map(len, ids), default=1)
        inputs = Inputs.of_shape(len(texts), longest, 1, partial(np.zeros, dtype=np.int32))
        options = PoolingParams().resolve(self.recipe, str(self.recipe.directory))
        inputs.dimensions[:] = options.dimensions
        inputs.activate[:] = options.activate
        inputs.adapter[:] = options.adapter
        inputs.skip[:] = 0 if self.recipe.include_prompt or not prompt else self._tokenizer.prompt_length(prompt)
        for row, own in enumerate(ids):
            inputs.ids[row, : len(own)] = own
            inputs.lengths[row] = len(own)
        return inputs

    def apply(self, params: Tree, inputs: Inputs) -> jax.Array:
        """The answers of the recipe's task, float32 [n, C], or [n, T, C] where it answers for every token.

        Pure: jit it, differentiate it, shard it.
        """
        inputs = jax.tree.map(jnp.asarray, inputs)
        output = make_program(self.recipe, self.recipe.task)(params, inputs)
        return output if self.recipe.task in PER_TOKEN else output[:, 0]

    def linen(self) -> linen.Module:
        """A `flax.linen` module whose `params` are this very tree: `module.apply({"params": model.params}, inputs)`."""
        return _linen_class()(self)


def load(
    model: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    revision: str | None = None,
    hf_token: str | None = None,
    hf_overrides: HFOverrides | None = None,
    task: str = AUTO,
) -> Model:
    """Loads a checkpoint for use as a function. Arguments and errors as `LLM`'s.

    Args:
        model: a directory or a name on the hub.
        dtype: to cast the weights to; None leaves them as they are stored.
        revision, hf_token, hf_overrides, task: as for `LLM`.
    """
    asked = asked_task(task, "auto", "auto")
    recipe = read_recipe(hub.resolve(model, revision, hf_token), hf_overrides, asked)
    tokenizer = load_tokenizer(recipe.backbone_directory, lower_case=recipe.lower_case)
    cast: Any = (lambda leaf: leaf) if dtype is None else (lambda leaf: leaf.astype(jnp.dtype(dtype)))
    return Model(recipe, map_leaves(cast, load_stored(recipe)), tokenizer)


def _linen_class() -> Any:
    from flax import linen

    class Pooling(linen.Module):
        """The model as a linen module; its parameters start as the checkpoint's."""

        model: Model

        @linen.compact
        def __call__(self, inputs: Inputs) -> jax.Array:
            parts = {name: self.param(name, lambda _, part=part: part) for name, part in self.model.params.items()}
            return self.model.apply(parts, inputs)

    return Pooling
