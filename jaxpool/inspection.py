"""What can be said of a model before its weights are read: `jaxpool info`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool import loading, memory
from jaxpool.llm import resolve_dtype
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.sharding import replica_meshes


@dataclass(frozen=True)
class Inspection:
    """A model on this machine's devices.

    Attributes:
        recipe: what the model's files say.
        dtype: the compute dtype.
        platform: JAX's name for the kind of device: "cpu", "tpu", "gpu".
        plan: what `LLM(model)` would hold.
        problem: what keeps the weights from fitting the model; None if they fit.
    """

    recipe: Recipe
    dtype: np.dtype
    platform: str
    plan: memory.MemoryPlan
    problem: str | None

    def as_text(self) -> str:
        """For people."""
        sections = {
            f"recipe of {self.recipe.directory}": self.recipe.describe(),
            f"memory ({self.dtype} on {self.platform})": self.plan.describe(),
        }
        lines = []
        for title, values in sections.items():
            width = max(map(len, values)) + 1
            lines += [title, *(f"  {name + ':':<{width}} {value}" for name, value in values.items())]
        return "\n".join([*lines, f"weights: {self.problem or 'fit the model'}"])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        recipe = self.recipe
        modules = lambda chain: [{"type": type(module).__name__, **asdict(module)} for module in chain]  # noqa: E731
        return {
            "directory": str(recipe.directory),
            "recipe": {
                "architecture": recipe.architecture,
                "family": recipe.family.name,
                "pooling": list(recipe.pooling),
                "include_prompt": recipe.include_prompt,
                "token_modules": modules(recipe.token_modules),
                "task": recipe.task,
                "tasks": list(recipe.tasks),
                "modules": modules(recipe.modules),
                "final": recipe.final,
                "activate": recipe.activate,
                "normalised": recipe.normalised,
                "embedding_size": recipe.embedding_size,
                "truncate_dim": recipe.truncate_dim,
                "max_length": recipe.max_length,
                "lower_case": recipe.lower_case,
                "prompts": dict(recipe.prompts),
                "default_prompt": recipe.default_prompt,
                "similarity": recipe.similarity,
                "source": recipe.source,
            },
            "dtype": str(self.dtype),
            "platform": self.platform,
            "memory": {**asdict(self.plan), "total": self.plan.total},
            "weights": {"fit": self.problem is None, "problem": self.problem},
        }


def inspect(directory: Path, dtype: str = "auto") -> Inspection:
    """Reads a model directory's small files and the names and shapes of its weights.

    Args:
        directory: of the model.
        dtype: as `LLM` takes it.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a file says what jaxpool does not understand, or `dtype` is unknown.
    """
    recipe = read_recipe(directory)
    # As `LLM` does without arguments.
    mesh = replica_meshes(None, None)[0]
    platform = mesh.devices.flat[0].platform
    compute = resolve_dtype(dtype, platform)
    ladder = memory.choose_ladder(recipe, compute, mesh)
    plan = memory.memory_plan(recipe, compute, ladder, platform=platform)
    return Inspection(recipe, compute, platform, plan, _problem(recipe))


def _problem(recipe: Recipe) -> str | None:
    try:
        loading.check(recipe)
    except (ValueError, OSError) as error:
        return str(error)
    return None
