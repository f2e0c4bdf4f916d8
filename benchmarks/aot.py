"""The engine's own programs, compiled for chips that are not there: what `tpu_aot` and `gpu_aot` share.

No weights are allocated. Programs with rows of `LONG` tokens and more are checked: no [T, T] array is written out, no
stack of weights is copied, and what comes back is a vector a sequence.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import hlo
from benchmarks.products import flops
from benchmarks.published import MODELS, recipe_of
from jaxpool.ahead import compile_for, mesh_of, missing, prepare
from jaxpool.batch import Inputs
from jaxpool.batching import Shape, make_ladder
from jaxpool.memory import CHIP_BUDGET, head_size, memory_plan
from jaxpool.params import flatten
from jaxpool.program import make_program, param_specs, unfold_for
from jaxpool.recipe import Recipe
from jaxpool.sharding import DATA, rows_sharding
from jaxpool.slices import Slice
from jaxpool.tasks import PER_TOKEN, TOKEN_EMBED

LONG = 2048
LENGTHS = (128, 512, 2048, 8192)
# What a kernel of Pallas' is called in a compiled program.
KERNELS = {"tpu": "tpu_custom_call", "gpu": "__gpu$xla.gpu.triton"}


@dataclass(frozen=True)
class Figures:
    """One program. Bytes are those of one chip, as XLA plans them."""

    model: str
    topology: str
    tokens: int
    rows: int
    chips: int
    dtype: str
    model_shards: int = 1
    fsdp: bool = False
    # What `jaxpool.memory` expects of it.
    planned: int = 0
    seconds: float = 0.0
    arguments: int = 0
    outputs: int = 0
    temporary: int = 0
    # Of matrix products, a computed token: the traced program's, and 2 · entries of the kernels it multiplies with, but
    # for what the last layer leaves out.
    flops: float = 0.0
    weight_flops: float = 0.0
    # XLA's own counts of the program on one chip: a loop's body once, a Pallas kernel as 0. For GPUs it has none.
    xla_flops: float = 0.0
    xla_bytes: float = 0.0
    # Bytes that each kind of operation reads and writes, on a GPU.
    traffic: dict[str, int] = field(default_factory=dict)
    collectives: dict[str, int] = field(default_factory=dict)
    weight_copies: list[hlo.Shape] = field(default_factory=list)
    squares: list[hlo.Shape] = field(default_factory=list)
    kernels: int = 0
    wrong: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def memory(self) -> int:
        """Bytes of HBM."""
        return self.arguments + self.outputs + self.temporary


def measure(
    model: str, recipe: Recipe, where: Slice, tokens: int, dtype: str, *, shards: int = 1, fsdp: bool = False
) -> Figures:
    """Compiles one program as the engine does, full batches of rows of `tokens`, and reads what came of it."""
    mesh, platform = mesh_of(where, shards), where.chip.platform
    chips, groups = mesh.devices.size, mesh.shape[DATA]
    # The ladder's own shapes; a row may be longer than the model's longest text, as it holds several.
    ladder = make_ladder(tokens, max(CHIP_BUDGET, tokens) * groups, row_multiple=groups)
    shape = ladder.full[tokens]
    planned = memory_plan(recipe, dtype, ladder, mesh, fsdp=fsdp, platform=platform).total
    figures = Figures(model, str(where), tokens, shape.rows, chips, dtype, shards, fsdp, planned)
    specs = param_specs(recipe)
    start = time.process_time()  # of all threads: what else the machine does is not counted
    try:
        compiled, params = compile_for(recipe, mesh, shape, dtype, fsdp=fsdp)
    except jax.errors.JaxRuntimeError as error:
        return Figures(**asdict(figures) | {"error": str(error).splitlines()[0]})
    seconds = time.process_time() - start
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
    stacks = [spec.shape for path, spec in flatten(specs).items() if "layers" in path and math.prod(spec.shape) > 2**20]
    kernels = [math.prod(spec.shape) for path, spec in flatten(specs).items() if path.endswith("kernel")]
    work, left_out = traced_flops(recipe, params, shape, mesh)
    figures = Figures(**asdict(figures) | {
        "seconds": round(seconds, 1),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "flops": work / shape.area,
        "weight_flops": 2.0 * sum(kernels) - left_out / shape.area,
        "xla_flops": cost.get("flops", 0.0),
        "xla_bytes": cost.get("bytes accessed", 0.0),
        "traffic": hlo.traffic(text) if platform == "gpu" else {},
        "collectives": hlo.collectives(text),
        "weight_copies": hlo.copies(text, stacks),
        "squares": sorted(hlo.squares(text, tokens)),
        "kernels": text.count(f'custom_call_target="{KERNELS[platform]}"'),
    })  # fmt: skip
    return Figures(**asdict(figures) | {"wrong": list(wrong(figures, recipe, shape)) if tokens >= LONG else []})


def traced_flops(recipe: Recipe, params: Any, shape: Shape, mesh: Mesh) -> tuple[int, int]:
    """Operations of a batch's matrix products, over all chips, and those that unwanted tokens leave out."""
    make = partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=rows_sharding(mesh))
    # A GPU's kernel turns as often as a row's sequences say, which no count of its program tells: without a mesh it is
    # the products that any platform can compute.
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    with nullcontext() if on_gpu else jax.set_mesh(mesh):
        inputs = Inputs.of_shape(shape.rows, shape.tokens, shape.places, make)
        whole, wanted = (_backbone_flops(recipe, params, inputs, task) for task in (TOKEN_EMBED, recipe.task))
        return flops(jax.make_jaxpr(make_program(recipe, recipe.task))(params, inputs).jaxpr), whole - wanted


def _backbone_flops(recipe: Recipe, params: Any, inputs: Inputs, task: str) -> int:
    def run(params: Any, inputs: Inputs) -> jax.Array:
        return recipe.family.run(params["backbone"], unfold_for(recipe, task, inputs), recipe.config).hidden

    return flops(jax.make_jaxpr(run)(params, inputs).jaxpr)


def wrong(figures: Figures, recipe: Recipe, shape: Shape) -> Iterator[str]:
    """What must not be in a program of long rows, and is."""
    config, tokens = recipe.config, figures.tokens
    groups = figures.chips // figures.model_shards
    widths = {config.hidden_size, config.hidden_size // groups, config.mlp_size, config.num_heads * head_size(config)}
    # Where T is a width of the model too, [T, T] may be tokens by width: there the bound below speaks alone.
    if tokens not in widths and figures.squares:
        yield f"[T, T] arrays: {figures.squares}"
    scores = shape.area // figures.chips * tokens * config.num_heads * 2
    # A large model's other temporaries alone are as much as a layer's scores: what is planned for them comes on top.
    allowed = scores if tokens in widths else scores + max(0, figures.planned - figures.arguments)
    if figures.model_shards == 1 and figures.temporary >= allowed:
        yield f"temporary {figures.temporary:,} bytes, as much as the scores in 16 bits: {scores:,}"
    if figures.weight_copies:
        yield f"copies of stacked weights: {figures.weight_copies}"
    if recipe.task not in PER_TOKEN:
        # Tiles of 8 × 128 are filled up.
        vectors = shape.rows // groups * -(-shape.places // 8) * 8 * -(-recipe.embedding_size // 128) * 128 * 4
        if figures.outputs > vectors:
            yield f"outputs of {figures.outputs:,} bytes, more than the {vectors:,} of one vector a sequence"


def parser(name: str, about: str, topologies: Sequence[str]) -> argparse.ArgumentParser:
    """The options that both command lines have."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    made.add_argument("--topologies", nargs="+", type=Slice.parse, default=topologies, metavar="NAME")
    made.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, metavar="T")
    made.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="chips that share each layer")
    made.add_argument("--fsdp", action="store_true", help="share the weights out over the others")
    made.add_argument("--dtype", default="bfloat16", help="of the weights (default: %(default)s)")
    made.add_argument("--layers", type=int, help="a shallower model, for a quick look")
    made.add_argument("--json", type=Path, help="write every figure to this file")
    return made


def compile_all(
    arguments: argparse.Namespace, platform: str, columns: Sequence[str], cells: Callable[[Figures], Sequence[str]]
) -> int:
    """Compiles what the options ask for and prints a Markdown table; returns the exit status: 1 where one is wrong."""
    if reason := missing(platform):
        print(reason, file=sys.stderr)
        return 1
    prepare(platform)
    depth = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
    how = {"shards": arguments.tensor_parallel, "fsdp": arguments.fsdp}
    found: list[Figures] = []
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for model in arguments.models:
        recipe = recipe_of(MODELS[model] | depth)
        for where in arguments.topologies:
            for tokens in arguments.lengths:
                found.append(measure(model, recipe, where, tokens, arguments.dtype, **how))
                print(line(found[-1], cells), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps([asdict(f) | {"memory": f.memory} for f in found], indent=1))
    return int(any(f.wrong for f in found))


FIRST_COLUMNS = ("model", "topology", "T", "rows", "compile, CPU s")


def line(f: Figures, cells: Callable[[Figures], Sequence[str]]) -> str:
    """A row of the Markdown table: `FIRST_COLUMNS`, then what `cells` says."""
    split = f" tp{f.model_shards}" * (f.model_shards > 1) + " fsdp" * f.fsdp
    first = [f.model, f.topology + split, str(f.tokens), str(f.rows)]
    row = [*first, f.error] if f.error else [*first, f"{f.seconds:.0f}", *cells(f)]
    return "| " + " | ".join(row) + " |" + "".join(f"\n  WRONG: {text}" for text in f.wrong)


def sizes(f: Figures) -> list[str]:
    """Cells of a program's memory; the last is what was planned for it, divided by all of it."""
    return [f"{size / 2**20:,.0f} MiB" for size in (f.arguments, f.temporary, f.outputs)] + [
        f"{f.planned / f.memory:.2f}"
    ]


SIZES = ("weights + inputs", "temporary", "outputs", "planned / compiled")


def collectives(f: Figures) -> str:
    """A cell of them."""
    return ", ".join(f"{n} {name}" for name, n in f.collectives.items()) or "none"
