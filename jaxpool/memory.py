"""The memory plan: what an engine will hold, worked out from declarations alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxpool.attention import blocked, flash
from jaxpool.batching import CHIP_SMALL_COST, CPU_SMALL_COST, MIN_TOKENS, Ladder, Shape, make_ladder
from jaxpool.log import logger
from jaxpool.params import ParamSpec, count
from jaxpool.program import device_specs, param_specs
from jaxpool.recipe import Recipe
from jaxpool.sharding import DATA, MODEL, own_device, param_partition

# Batches of this many tokens where the platform has not been asked: measured on CPU (docs/performance.md);
# chips want enough rows to fill their matrix units.
CPU_BUDGET = 512
CHIP_BUDGET = 16_384
# Of a device's memory, at most, before the weights are shared out over the data axis as well.
WEIGHTS_SHARE = 0.8
ONE_DEVICE = AbstractMesh((1, 1), (DATA, MODEL))
# Times the width of the model: a layer's input, its norm and its sum.
RESIDUALS = 3
# Layers that are whole on each device at a time, where the data axis shares the weights out: this one and the next.
GATHERED_LAYERS = 2
# Attention kernels take rows of a multiple of this.
CHIP_LANES = 128
# The shortest row that several texts share: in a longer one short texts pay for more scores (docs/performance.md).
CPU_ROW = 64


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device.

    Attributes:
        parameters: number of parameters of the whole model.
        weights: bytes of its part of the weights.
        activations: bytes of its part of the largest batch's activations (an estimate from the family's widest stage).
        batch_tokens: tokens of that batch, over all devices that share it.
        weights_once: whether all replicas read the same weights (`placement.shared`).
    """

    parameters: int
    weights: int
    activations: int
    batch_tokens: int
    weights_once: bool = False

    @property
    def total(self) -> int:
        """Weights and activations."""
        return self.weights + self.activations

    def describe(self) -> dict[str, str]:
        """The plan as lines for people."""
        more = f", and {mebibytes(self.activations)} for each further stream" if self.weights_once else " a device"
        return {
            "parameters": f"{self.parameters:,}",
            "weights": mebibytes(self.weights),
            "activations": f"{mebibytes(self.activations)} (estimate, {self.batch_tokens} tokens a batch)",
            "total": mebibytes(self.total) + more,
        }


def mebibytes(size: int) -> str:
    """1234567 -> "1.2 MiB"."""
    return f"{size / 2**20:,.1f} MiB"


def memory_plan(
    recipe: Recipe, dtype: Any, ladder: Ladder, mesh: Any = ONE_DEVICE, *, fsdp: bool = False, platform: str = "cpu"
) -> MemoryPlan:
    """What each device holds for a recipe, without loading anything.

    Args:
        recipe: the model.
        dtype: the compute dtype.
        ladder: the shapes.
        mesh: of one replica; concrete or abstract.
        fsdp: as `sharding.param_partition`.
        platform: JAX's name for the kind of device.

    Raises:
        ValueError: as `sharding.param_partition`.
    """
    largest = largest_shape(ladder)
    area, shards = largest.area // mesh.shape[DATA], mesh.shape.get(MODEL, 1)
    activations = activation_bytes(recipe, dtype, area, largest.tokens, shards, platform)
    if fsdp:
        activations += GATHERED_LAYERS * _layer_bytes(recipe, dtype, mesh)
    return MemoryPlan(
        parameters=count(param_specs(recipe)),
        weights=weight_bytes(recipe, dtype, mesh, fsdp=fsdp),
        activations=activations,
        batch_tokens=largest.area,
        weights_once=platform == "cpu" and mesh.size == 1,
    )


def largest_shape(ladder: Ladder) -> Shape:
    """The shape whose batches take most memory."""
    return max(ladder.shapes, key=lambda s: (s.area * s.tokens, s.area))


def weight_bytes(recipe: Recipe, dtype: Any, mesh: Any, *, fsdp: bool = False) -> int:
    """Bytes of a device's part of the weights. Errors as `sharding.param_partition`."""
    return sum(_own_bytes(spec, dtype, mesh, fsdp) for spec in jax.tree.leaves(device_specs(recipe)))


def _layer_bytes(recipe: Recipe, dtype: Any, mesh: Any) -> int:
    """Of one layer, gathered over the data axis."""
    stacked = [spec for spec in jax.tree.leaves(device_specs(recipe)["backbone"]) if spec.axes[:1] == ("layers",)]
    return sum(_own_bytes(spec, dtype, mesh, False) // spec.shape[0] for spec in stacked)


def _own_bytes(spec: ParamSpec, dtype: Any, mesh: Any, fsdp: bool) -> int:
    split = (axis for axis in param_partition(spec, mesh, fsdp=fsdp) if axis)
    return math.prod(spec.shape) * spec.dtype_or(dtype).itemsize // math.prod(mesh.shape[axis] for axis in split)


def activation_bytes(recipe: Recipe, dtype: Any, tokens: int, row: int, shards: int, platform: str) -> int:
    """An estimate for `tokens` in rows of `row`, on one of the `shards` devices that share a layer."""
    # Where the scores do not stay on the chip, those of a layer (or of a block of its queries) and their softmax are
    # written out in float32.
    written = _queries_written_out(recipe.config, dtype, row, platform)
    scores = 2 * 4 * getattr(recipe.config, "num_heads", 1) * written
    # The residual stream is whole on each device that shares a layer; the rest is split.
    whole = 4 * RESIDUALS * getattr(recipe.config, "hidden_size", 0)
    widest = (recipe.config.activation_bytes_per_token - whole) // shards + whole
    return tokens * (widest * jnp.dtype(dtype).itemsize // 4 + scores // shards)


def _queries_written_out(config: Any, dtype: Any, row: int, platform: str) -> int:
    """Of how many queries of a row the scores lie in memory at a time: as `attention` chooses on today's chips.

    No device is asked: a plan may be for another machine.
    """
    if getattr(config, "biased_scores", False):
        return row
    by_flash = jnp.dtype(dtype) == jnp.bfloat16 and row >= flash.QUERIES and head_size(config) <= flash.WIDEST
    if platform == "tpu" or (platform == "gpu" and by_flash):
        return 0
    return row if row < blocked.MIN_TOKENS else blocked.CHIP_QUERIES


def head_size(config: Any) -> int:
    """Features of a head: the config's own, or its part of the width; 0 for a config that says neither."""
    own = getattr(config, "head_size", None)
    return own or getattr(config, "hidden_size", 0) // getattr(config, "num_heads", 1)


def needs_fsdp(recipe: Recipe, dtype: Any, mesh: Mesh) -> bool:
    """Whether the weights of a replica fit its devices only if the data axis shares them out; said at INFO."""
    limit = (own_device(mesh).memory_stats() or {}).get("bytes_limit")
    if limit is None or mesh.shape[DATA] == 1:
        return False
    needed = weight_bytes(recipe, dtype, mesh)
    if needed <= WEIGHTS_SHARE * limit:
        return False
    logger.info("the weights, %s, do not fit a device of %s: sharing them out", mebibytes(needed), mebibytes(limit))
    return True


def token_budget(recipe: Recipe, dtype: Any, device: Any, mesh: Any = ONE_DEVICE, *, fsdp: bool = False) -> int:
    """Tokens of a batch on `device`: its default, or what fits in half of the memory that is free there."""
    if device.platform == "cpu":
        return CPU_BUDGET
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        return CHIP_BUDGET
    held = weight_bytes(recipe, dtype, mesh, fsdp=fsdp)
    free, shards = memory["bytes_limit"] - memory.get("bytes_in_use", 0) - held, mesh.shape.get(MODEL, 1)

    def too_large(tokens: int) -> bool:
        return activation_bytes(recipe, dtype, tokens, recipe.max_length, shards, device.platform) > free // 2

    budget = CHIP_BUDGET
    while budget > recipe.max_length and too_large(budget):
        budget //= 2
    if budget < CHIP_BUDGET:
        logger.info("batches of %d tokens: %s are free on %s", budget, mebibytes(free), device)
    return budget


def choose_ladder(
    recipe: Recipe, dtype: Any, mesh: Mesh, *, budget: int | None = None, packed: bool = True, fsdp: bool = False
) -> Ladder:
    """The shapes of an engine on `mesh`; `budget` tokens a batch, or what `token_budget` gives each of its groups."""
    shards = mesh.shape[DATA]
    device = own_device(mesh)
    tokens = budget or token_budget(recipe, dtype, device, mesh, fsdp=fsdp) * shards
    return make_ladder(recipe.max_length, tokens, packed=packed, row_multiple=shards, **shaping(device.platform))


def tower_ladder(recipe: Recipe, mesh: Mesh, *, budget: int | None = None, packed: bool = True) -> Ladder | None:
    """The shapes for pictures, of `budget` patches or the platform's tokens; None for a family that only reads."""
    tower = recipe.family.tower
    if tower is None:
        return None
    shards, platform = mesh.shape[DATA], own_device(mesh).platform
    patches = tower.patches(recipe.config, recipe.picture_format)
    area = budget or (CPU_BUDGET if platform == "cpu" else CHIP_BUDGET) * shards
    if patches.fixed:
        rows = max(shards, area // patches.length // shards * shards)
        full, small = (Shape(patches.length, count, 1) for count in (rows, shards if packed else rows))
        return Ladder({patches.length: full}, {patches.length: small}, packed=False)
    return make_ladder(patches.length, area, packed=packed, row_multiple=shards, **shaping(platform))


def shaping(platform: str) -> dict[str, Any]:
    """What a kind of device asks of a ladder: arguments of `make_ladder`."""
    if platform == "cpu":
        return {"lanes": MIN_TOKENS, "packed_row": CPU_ROW, "small_cost": CPU_SMALL_COST}
    return {"lanes": CHIP_LANES, "packed_row": CHIP_LANES, "small_cost": CHIP_SMALL_COST}
