"""The memory plan: what an engine will hold, worked out from declarations alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from jaxpool.batching import MIN_TOKENS, Ladder, make_ladder
from jaxpool.log import logger
from jaxpool.params import count, nbytes
from jaxpool.program import device_specs, param_specs
from jaxpool.recipe import Recipe
from jaxpool.sharding import DATA

# Batches of this many tokens where the platform has not been asked: measured on CPU (docs/performance.md);
# chips want enough rows to fill their matrix units.
CPU_BUDGET = 512
CHIP_BUDGET = 16_384
# Attention kernels take rows of a multiple of this.
CHIP_LANES = 128


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each replica.

    Attributes:
        parameters: number of parameters.
        weights: bytes of the weights.
        activations: bytes of the largest batch's activations (an estimate from the family's widest stage).
        batch_tokens: tokens of that batch.
    """

    parameters: int
    weights: int
    activations: int
    batch_tokens: int

    @property
    def total(self) -> int:
        """Weights and activations."""
        return self.weights + self.activations

    def describe(self) -> dict[str, str]:
        """The plan as lines for people."""
        return {
            "parameters": f"{self.parameters:,}",
            "weights": mebibytes(self.weights),
            "activations": f"{mebibytes(self.activations)} (estimate, {self.batch_tokens} tokens a batch)",
            "total": f"{mebibytes(self.total)} a replica",
        }


def mebibytes(size: int) -> str:
    """1234567 -> "1.2 MiB"."""
    return f"{size / 2**20:,.1f} MiB"


def memory_plan(recipe: Recipe, dtype: Any, ladder: Ladder) -> MemoryPlan:
    """What one replica holds for a recipe, without loading anything."""
    largest = max(ladder.shapes, key=lambda s: (s.area * s.tokens, s.area))
    return MemoryPlan(
        count(param_specs(recipe)),
        nbytes(device_specs(recipe), dtype),
        _activations(recipe, largest.area, largest.tokens),
        largest.area,
    )


def _activations(recipe: Recipe, tokens: int, row: int) -> int:
    heads = getattr(recipe.config, "num_heads", 1)
    # The scores of one layer and their softmax, [R, N, T, T] in float32, beside the widest stage.
    return tokens * (recipe.config.activation_bytes_per_token + 2 * 4 * heads * row)


def token_budget(recipe: Recipe, dtype: Any, device: Any) -> int:
    """Tokens of a batch on `device`: its default, or what fits in half of the memory that is free there."""
    if device.platform == "cpu":
        return CPU_BUDGET
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        return CHIP_BUDGET
    free = memory["bytes_limit"] - memory.get("bytes_in_use", 0) - nbytes(device_specs(recipe), dtype)
    budget = CHIP_BUDGET
    while budget > recipe.max_length and _activations(recipe, budget, recipe.max_length) > free // 2:
        budget //= 2
    if budget < CHIP_BUDGET:
        logger.info("batches of %d tokens: %s are free on %s", budget, mebibytes(free), device)
    return budget


def choose_ladder(recipe: Recipe, dtype: Any, mesh: Mesh, *, budget: int | None = None, packed: bool = True) -> Ladder:
    """The shapes of an engine on `mesh`; `budget` tokens a batch, or what `token_budget` gives each of its devices."""
    shards = mesh.shape[DATA]
    device = mesh.devices.flat[0]
    tokens = budget or token_budget(recipe, dtype, device) * shards
    lanes = MIN_TOKENS if device.platform == "cpu" else CHIP_LANES
    return make_ladder(recipe.max_length, tokens, packed=packed, row_multiple=shards, lanes=lanes)
