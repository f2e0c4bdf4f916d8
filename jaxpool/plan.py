"""Which meshes a model fits on, worked out from declarations alone: `jaxpool plan`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from jax.sharding import AbstractMesh

from jaxpool import ahead
from jaxpool.batching import Shape, make_ladder
from jaxpool.memory import CHIP_BUDGET, MemoryPlan, largest_shape, mebibytes, memory_plan, shaping
from jaxpool.recipe import Recipe
from jaxpool.sharding import DATA, MODEL
from jaxpool.slices import Slice

# Rows that are longer make batches of one row each.
LEAST_BUDGET = 1024


@dataclass(frozen=True)
class Layout:
    """One way to spread a model over a slice.

    Attributes:
        data, model: `data_parallel_size` and `tensor_parallel_size`.
        fsdp: whether the data axis shares out the parameters.
        plan: what a device then holds; None where it cannot be.
        problem: why it cannot be, or does not fit; None if it fits.
        largest: the shape of its largest batches; None where it cannot be.
    """

    data: int
    model: int
    fsdp: bool
    plan: MemoryPlan | None
    problem: str | None
    largest: Shape | None = None

    @property
    def mesh(self) -> AbstractMesh:
        """The mesh, without devices."""
        return AbstractMesh((self.data, self.model), (DATA, MODEL))

    @property
    def arguments(self) -> str:
        """What to hand to `LLM`."""
        return f"data_parallel_size={self.data}, tensor_parallel_size={self.model}, fsdp={self.fsdp}"


@dataclass(frozen=True)
class Compiled:
    """Bytes on each device of the program for the largest batches, as XLA's compiler for the chip plans them."""

    arguments: int
    outputs: int
    temporary: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.arguments + self.outputs + self.temporary

    def as_text(self, plan: MemoryPlan) -> str:
        """For people, beside the estimate."""
        sizes = f"weights and inputs {mebibytes(self.arguments)}, outputs {mebibytes(self.outputs)}"
        total = f"{mebibytes(self.total)} (estimated {plan.total / self.total:.2f} of it)"
        return f"{sizes}, temporary {mebibytes(self.temporary)}, total {total}"


@dataclass(frozen=True)
class SlicePlan:
    """What was found for one slice.

    Attributes:
        slice: which.
        layouts: in the order of preference: data parallel first, then tensor parallel, then FSDP.
        smallest: the smallest slice of the same kind that has a layout that fits, with that layout; None if none has.
        compiled: what the compiler says of the first layout that fits; None if it was not asked.
    """

    slice: Slice
    layouts: tuple[Layout, ...]
    smallest: tuple[Slice, Layout] | None
    compiled: Compiled | None = None

    @property
    def best(self) -> Layout | None:
        """The first that fits."""
        return _first_that_fits(self.layouts)

    def as_text(self) -> str:
        """For people."""
        lines = [f"{self.slice}: {self.slice.devices} devices of {mebibytes(self.slice.memory)} for programs", ""]
        sizes = "".join(f" {name:>14}" for name in ("weights", "activations", "total", "batch tokens"))
        lines.append(f"{'data':>5} {'model':>5} {'fsdp':>5}{sizes}")
        for layout in self.layouts:
            place = f"{layout.data:>5} {layout.model:>5} {'yes' if layout.fsdp else 'no':>5}"
            sizes = ""
            if layout.plan:
                plan = layout.plan
                sizes = "".join(f" {mebibytes(size):>14}" for size in (plan.weights, plan.activations, plan.total))
                sizes += f" {plan.batch_tokens:>14,}"
            lines.append(f"{place}{sizes}  {layout.problem or 'fits'}")
        lines += ["", f"best: {self.best.arguments}" if self.best else f"nothing fits {self.slice}"]
        if self.compiled and self.best and self.best.plan:
            lines.append(f"compiled: {self.compiled.as_text(self.best.plan)}")
        if self.smallest:
            lines.append(f"smallest: {self.smallest[0]}, {self.smallest[1].arguments}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        best = self.best
        return {
            "topology": str(self.slice),
            "devices": self.slice.devices,
            "memory": self.slice.memory,
            "layouts": [asdict(layout) for layout in self.layouts],
            "best": None if best is None else asdict(best),
            "compiled": self.compiled and {**asdict(self.compiled), "total": self.compiled.total},
            "smallest": self.smallest and {"topology": str(self.smallest[0]), **asdict(self.smallest[1])},
        }


def plan_slice(recipe: Recipe, dtype: Any, where: Slice) -> SlicePlan:
    """Tries every layout on a slice, and the slices that are smaller or larger."""
    slices = (Slice(where.kind, shape) for shape in where.chip.slices)
    found = ((other, _first_that_fits(layouts(recipe, dtype, other))) for other in slices)
    smallest = next(((other, layout) for other, layout in found if layout), None)
    return SlicePlan(where, tuple(layouts(recipe, dtype, where)), smallest)


def with_compiled(found: SlicePlan, recipe: Recipe, dtype: Any) -> SlicePlan:
    """The plan, with the compiler's own figures for its best layout beside the estimate. Takes minutes.

    Raises:
        ValueError: no layout fits, the compiler does not know the slice, or it says that the layout does not fit.
        ImportError: the platform's compiler is not there.
    """
    best, platform = found.best, found.slice.chip.platform
    if best is None or best.largest is None:
        raise ValueError(f"{found.slice}: nothing to compile")
    if reason := ahead.missing(platform):
        raise ImportError(reason)
    ahead.prepare(platform)
    try:
        mesh = ahead.mesh_of(found.slice, best.model)
        executable, _ = ahead.compile_for(recipe, mesh, best.largest, dtype, fsdp=best.fsdp)
    except RuntimeError as error:  # XLA's own, and JAX's where the compiler does not start
        raise ValueError(f"{found.slice}, {best.arguments}: {str(error).splitlines()[0]}") from error
    memory = executable.memory_analysis()
    if memory is None:
        raise ValueError(f"{found.slice}: the compiler says nothing of memory")
    sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    return replace(found, compiled=Compiled(*sizes))


def _first_that_fits(layouts: Iterable[Layout]) -> Layout | None:
    return next((layout for layout in layouts if layout.problem is None), None)


def layouts(recipe: Recipe, dtype: Any, where: Slice) -> Iterator[Layout]:
    """Every layout of a slice, in the order of preference."""
    sizes = [model for model in range(1, where.devices + 1) if where.devices % model == 0]
    for fsdp in (False, True):
        for model in sizes:
            if not (fsdp and model == where.devices):
                yield _layout(recipe, dtype, where, model, fsdp)


def _layout(recipe: Recipe, dtype: Any, where: Slice, model: int, fsdp: bool) -> Layout:
    """With the largest batches that fit."""
    data = where.devices // model
    mesh, tokens, plan = AbstractMesh((data, model), (DATA, MODEL)), CHIP_BUDGET, None
    while tokens >= LEAST_BUDGET:
        ladder = make_ladder(recipe.max_length, tokens * data, row_multiple=data, **shaping(where.chip.platform))
        try:
            plan = memory_plan(recipe, dtype, ladder, mesh, fsdp=fsdp, platform=where.chip.platform)
        except ValueError as error:
            return Layout(data, model, fsdp, None, str(error))
        if plan.total <= where.memory:
            return Layout(data, model, fsdp, plan, None, largest_shape(ladder))
        tokens //= 2
    return Layout(data, model, fsdp, plan, "does not fit")
