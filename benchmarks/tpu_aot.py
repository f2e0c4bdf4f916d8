"""The real programs, compiled for TPUs on a machine that has none: `python -m benchmarks.tpu_aot`.

Needs libtpu, of the version that belongs to the installed JAX (docs/tpu.md). No weights are allocated. Programs with
rows of `LONG` tokens and more are checked: no [T, T] array is written out, no stack of weights is copied, and what
comes back is a vector a sequence. Exit status 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import hlo
from benchmarks.products import flops
from jaxpool.ahead import compile_for, mesh_of, missing, prepare
from jaxpool.attention import blocked, splash
from jaxpool.batch import Inputs
from jaxpool.batching import Shape, make_ladder
from jaxpool.memory import CHIP_BUDGET, memory_plan
from jaxpool.params import flatten
from jaxpool.program import make_program, param_specs
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.sharding import DATA, rows_sharding
from jaxpool.tasks import PER_TOKEN

LONG = 2048

TOPOLOGIES = ("v5e:1x1", "v5e:2x4", "v6e:2x4", "tpu7x:2x2x1")
LENGTHS = (128, 512, 2048, 8192)


def _bert(**sizes: int) -> dict[str, Any]:
    return {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2} | sizes


def _qwen3(**sizes: int) -> dict[str, Any]:
    shared = {"head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 32_768, "rope_theta": 1e6}
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"} | shared | sizes


def _qwen2(**sizes: Any) -> dict[str, Any]:
    shared = {"vocab_size": 152_064, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    return {"model_type": "qwen2"} | shared | sizes


# Published shapes, as their config.json gives them.
MODELS: Mapping[str, dict[str, Any]] = {
    "bge-base": _bert(vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                      intermediate_size=3072, max_position_embeddings=512)
    | {"architectures": ["BertModel"], "model_type": "bert"},
    "bge-m3": _bert(vocab_size=250_002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                    intermediate_size=4096, max_position_embeddings=8194)
    | {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1},
    "modernbert-base": {"architectures": ["ModernBertModel"], "model_type": "modernbert", "vocab_size": 50_368,
                        "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
                        "intermediate_size": 1152, "max_position_embeddings": 8192},
    "qwen3-embedding-0.6b": _qwen3(vocab_size=151_669, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
                                   intermediate_size=3072),
    "qwen3-embedding-8b": _qwen3(vocab_size=151_665, hidden_size=4096, num_hidden_layers=36, num_attention_heads=32,
                                 intermediate_size=12_288),
    "qwen2-7b": _qwen2(architectures=["Qwen2ForCausalLM"], hidden_size=3584, num_hidden_layers=28,
                       num_attention_heads=28, num_key_value_heads=4, intermediate_size=18_944),
    "qwen2.5-math-rm-72b": _qwen2(architectures=["Qwen2ForRewardModel"], num_labels=1, hidden_size=8192,
                                  num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
                                  intermediate_size=29_568),
}  # fmt: skip


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
    # Of matrix products, a computed token: the traced program's, and 2 · entries of the kernels it multiplies with.
    flops: float = 0.0
    weight_flops: float = 0.0
    # XLA's own counts of the program on one chip: a loop's body once, a Pallas kernel as 0.
    xla_flops: float = 0.0
    xla_bytes: float = 0.0
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


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a directory that holds this config.json and nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return read_recipe(Path(directory))


def measure(
    model: str, recipe: Recipe, topology: str, tokens: int, dtype: str, *, shards: int = 1, fsdp: bool = False
) -> Figures:
    """Compiles one program as the engine does, full batches of rows of `tokens`, and reads what came of it."""
    mesh = mesh_of(topology, shards)
    chips, groups = mesh.devices.size, mesh.shape[DATA]
    # The ladder's own shapes; a row may be longer than the model's longest text, as it holds several.
    ladder = make_ladder(tokens, max(CHIP_BUDGET, tokens) * groups, row_multiple=groups)
    shape = ladder.full[tokens]
    planned = memory_plan(recipe, dtype, ladder, mesh, fsdp=fsdp, platform="tpu").total
    figures = Figures(model, topology, tokens, shape.rows, chips, dtype, shards, fsdp, planned)
    specs = param_specs(recipe)
    start = time.process_time()  # of all threads: what else the machine does is not counted
    try:
        compiled, params = compile_for(recipe, mesh, shape, dtype, fsdp=fsdp)
    except jax.errors.JaxRuntimeError as error:
        return Figures(**asdict(figures) | {"error": str(error).splitlines()[0]})
    seconds = time.process_time() - start
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    stacks = [spec.shape for path, spec in flatten(specs).items() if "layers" in path and math.prod(spec.shape) > 2**20]
    kernels = [math.prod(spec.shape) for path, spec in flatten(specs).items() if path.endswith("kernel")]
    figures = Figures(**asdict(figures) | {
        "seconds": round(seconds, 1),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "flops": traced_flops(recipe, params, shape, mesh) / shape.area,
        "weight_flops": 2.0 * sum(kernels),
        "xla_flops": cost["flops"],
        "xla_bytes": cost["bytes accessed"],
        "collectives": hlo.collectives(text),
        "weight_copies": hlo.copies(text, stacks),
        "squares": sorted(hlo.squares(text, tokens)),
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
    })  # fmt: skip
    return Figures(**asdict(figures) | {"wrong": list(wrong(figures, recipe, shape)) if tokens >= LONG else []})


def traced_flops(recipe: Recipe, params: Any, shape: Shape, mesh: Mesh) -> int:
    """Operations of a batch's matrix products, over all chips."""
    make = partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=rows_sharding(mesh))
    with jax.set_mesh(mesh):
        inputs = Inputs.of_shape(shape.rows, shape.tokens, shape.places, make)
        return flops(jax.make_jaxpr(make_program(recipe, recipe.task))(params, inputs).jaxpr)


def wrong(figures: Figures, recipe: Recipe, shape: Shape) -> Iterator[str]:
    """What must not be in a program of long rows, and is."""
    config, tokens = recipe.config, figures.tokens
    head_size = getattr(config, "head_size", config.hidden_size // config.num_heads)
    groups = figures.chips // figures.model_shards
    widths = {config.hidden_size, config.hidden_size // groups, config.mlp_size, config.num_heads * head_size}
    # Where T is a width of the model too, [T, T] may be tokens by width: there the bound below speaks alone.
    if tokens not in widths and figures.squares:
        yield f"[T, T] arrays: {figures.squares}"
    scores = shape.area // figures.chips * tokens * config.num_heads * 2
    if figures.model_shards == 1 and figures.temporary >= scores:
        yield f"temporary {figures.temporary:,} bytes, as much as the scores in 16 bits: {scores:,}"
    if figures.weight_copies:
        yield f"copies of stacked weights: {figures.weight_copies}"
    if recipe.task not in PER_TOKEN:
        # Tiles of 8 × 128 are filled up.
        vectors = shape.rows // groups * -(-shape.places // 8) * 8 * -(-recipe.embedding_size // 128) * 128 * 4
        if figures.outputs > vectors:
            yield f"outputs of {figures.outputs:,} bytes, more than the {vectors:,} of one vector a sequence"


COLUMNS = (
    "model", "topology", "T", "rows", "compile, CPU s", "weights + inputs", "temporary", "outputs",
    "planned / compiled", "GFLOP a token (2 × kernels)", "XLA's bytes", "kernel calls", "collectives", "weight copies",
)  # fmt: skip


def line(f: Figures) -> str:
    """A row of the Markdown table."""
    split = f" tp{f.model_shards}" * (f.model_shards > 1) + " fsdp" * f.fsdp
    cells = [f.model, f.topology + split, str(f.tokens), str(f.rows)]
    if f.error:
        return "| " + " | ".join([*cells, f.error]) + " |"
    cells += [f"{f.seconds:.0f}", *(f"{size / 2**20:,.0f} MiB" for size in (f.arguments, f.temporary, f.outputs))]
    cells += [f"{f.planned / f.memory:.2f}"]
    cells += [f"{f.flops / 1e9:.3f} ({f.weight_flops / 1e9:.3f})", f"{f.xla_bytes / 2**30:.2f} GiB", str(f.kernels)]
    cells += [", ".join(f"{n} {name}" for name, n in f.collectives.items()) or "none", str(len(f.weight_copies))]
    return "| " + " | ".join(cells) + " |" + "".join(f"\n  WRONG: {text}" for text in f.wrong)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu_aot", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, metavar="T")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="chips that share each layer")
    parser.add_argument("--fsdp", action="store_true", help="share the weights out over the others")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="a shallower model, for a quick look")
    parser.add_argument(
        "--splash-from",
        type=int,
        default=splash.MIN_TOKENS,
        metavar="T",
        help="rows of so many tokens and more take the splash kernel, shorter ones einsums (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    prepare()
    splash.MIN_TOKENS = blocked.MIN_TOKENS = arguments.splash_from
    depth = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
    how = {"shards": arguments.tensor_parallel, "fsdp": arguments.fsdp}
    found: list[Figures] = []
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for model in arguments.models:
        recipe = recipe_of(MODELS[model] | depth)
        for topology in arguments.topologies:
            for tokens in arguments.lengths:
                found.append(measure(model, recipe, topology, tokens, arguments.dtype, **how))
                print(line(found[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps([asdict(f) | {"memory": f.memory} for f in found], indent=1))
    return int(any(f.wrong for f in found))


if __name__ == "__main__":
    raise SystemExit(main())
