"""TPU programs, compiled here without a TPU: what they hold, what they return, which attention they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import aot, hlo, tpu_aot
from benchmarks.products import flops
from jaxpool.ahead import missing

# BERT's layers at a size that compiles in seconds; heads of 64, as MiniLM's and BERT's kin mostly have.
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 2000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 640,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
}
CASES = (("v5e:1x1", 128), ("v5e:1x1", 512), ("v5e:2x4", 2048))
# Published shapes, on the other kinds of chip, and where the last layer alone once had stacks copied, and each layer's
# fused kernels were.
PUBLISHED = (
    ("bge-base", "v6e:2x4", 512),
    ("bge-base", "tpu7x:2x2x1", 2048),
    ("qwen3-embedding-0.6b", "v5e:2x4", 512),
    ("modernbert-base", "v5e:1x1", 2048),
)
# 12 layers of 12 · 768² weights and the embeddings of 30,522 tokens; Qwen3's 28 layers and 151,669 tokens; ModernBERT's
# 22 and 50,368.
PARAMETERS = {"bge-base": 109e6, "qwen3-embedding-0.6b": 596e6, "modernbert-base": 149e6}
# Heads that fill neither lanes nor tiles, as SigLIP's largest tower has them, and wide ones in float32, as Gemma's.
ODD = CONFIG | {"hidden_size": 216, "num_attention_heads": 3}
WIDE = CONFIG | {"num_attention_heads": 1}
# Four kv heads, which eight chips do not divide: each has them all.
DECODER = CONFIG | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
CODE = """
import json, sys
from dataclasses import asdict
import jax
from benchmarks import aot
from benchmarks.published import MODELS, recipe_of
from jaxpool.ahead import prepare
from jaxpool.slices import Slice
prepare("tpu")
# 5 seconds a program instead of 30: what is looked for here does not hang on the compiler's best.
jax.config.update("jax_exec_time_optimization_effort", -1.0)
config, cases, published, decoder, odd, wide = json.loads(sys.argv[1])
def measure(name, config, where, tokens, dtype="bfloat16", **how):
    return aot.measure(name, recipe_of(config), Slice.parse(where), tokens, dtype, **how)
found = [measure("small", config, *case) for case in cases]
found += [measure(name, MODELS[name], *case) for name, *case in published]
found.append(measure("decoder", decoder, "v5e:2x4", 2048, shards=8))
found.append(measure("odd", odd, "v6e:1x1", 640))
found.append(measure("wide", wide, "v5e:1x1", 512, "float32"))
print(json.dumps([asdict(figures) for figures in found]))
"""


@pytest.fixture(scope="module")
def programs():
    """Figures by (topology, tokens), of published shapes by (model, topology, tokens). In a process of its own: libtpu stays out of the other tests' JAX."""
    if reason := missing("tpu"):
        pytest.skip(f"NO PROGRAM IS COMPILED FOR TPU: {reason}")
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([CONFIG, CASES, PUBLISHED, DECODER, ODD, WIDE])],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(aot.__file__).parent.parent,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return dict(
        zip(
            (*CASES, *PUBLISHED, "shared kv heads", "odd heads", "wide heads"),
            json.loads(done.stdout.splitlines()[-1]),
            strict=True,
        )
    )


def test_kv_heads_that_chips_share(programs):
    found = programs["shared kv heads"]
    assert not found["error"]
    assert found["kernels"] > 0
    # After attention and after the MLP, of the layers' loop and of the last one, and of the vocabulary's table.
    assert found["collectives"] == {"all-reduce": 5}


@pytest.mark.parametrize("heads", ["odd heads", "wide heads"])
def test_heads_of_other_widths(programs, heads):
    assert not programs[heads]["error"]
    assert programs[heads]["kernels"] > 0


def test_the_plan_beside_the_compiler(tmp_path):
    if reason := missing("tpu"):
        pytest.skip(f"NO PROGRAM IS COMPILED FOR TPU: {reason}")
    decoder = {"architectures": ["Qwen2ForRewardModel"], "model_type": "qwen2", "num_labels": 1, "rms_norm_eps": 1e-6}
    # A 7B's layers: estimates are for models whose sizes matter.
    sizes = {
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | decoder | sizes))
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "jaxpool", "plan", tmp_path, "--topology", "v5e:2x4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    planned = found["best"]["plan"]["weights"] + found["best"]["plan"]["activations"]
    assert 0.85 < planned / found["compiled"]["total"] < 1.15


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_program_compiles(programs, case):
    found = programs[case]
    assert not found["error"]
    assert not found["wrong"]
    assert not found["collectives"]  # rows are apart: chips have nothing to tell each other
    assert found["rows"] % found["chips"] == 0
    # Each chip holds the weights once and its own rows' ids: 2,000 · 256 embeddings and 4 layers in bfloat16.
    assert 5e6 < found["arguments"] < 8e6
    assert found["flops"] > found["weight_flops"] > 0


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_a_published_shape_compiles(programs, case):
    found = programs[case]
    assert not found["error"]
    assert not found["wrong"]
    assert not found["weight_copies"]
    assert not found["collectives"]
    assert found["kernels"] > 0
    assert found["xla_bytes"] > found["arguments"]  # every weight is read once at least
    assert found["arguments"] == pytest.approx(2 * PARAMETERS[case[0]], rel=0.05)


def test_the_table_has_a_cell_for_every_column():
    figures = aot.Figures(
        "bge-base",
        "v5e:1x1",
        128,
        128,
        1,
        "bfloat16",
        planned=2 * 2**20,
        seconds=5.4,
        arguments=2**20,
        xla_bytes=3 * 2**30,
    )
    cells = dict(zip(tpu_aot.COLUMNS, aot.line(figures, tpu_aot.cells).strip("| ").split(" | "), strict=True))
    assert (cells["model"], cells["compile, CPU s"], cells["XLA's bytes"]) == ("bge-base", "5", "3.00 GiB")
    assert cells["planned / compiled"] == "2.00"


def test_short_rows_take_einsum_and_long_ones_the_kernel(programs):
    assert [programs[case]["kernels"] > 0 for case in CASES] == [False, True, True]
    assert programs["v5e:1x1", 128]["squares"]
    assert not programs["v5e:2x4", 2048]["squares"]


def test_products_are_counted_as_often_as_they_run():
    def program(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] @ w[0]

    traced = jax.make_jaxpr(program)(jnp.zeros((3, 5)), jnp.zeros((7, 5, 5)))
    assert flops(traced.jaxpr) == (7 + 1) * 2 * 3 * 5 * 5


def test_reading_a_compiled_program():
    text = """
      %copy.1 = bf16[12,3072,768]{1,2,0:T(8,128)(2,1)} copy(%param.3)
      %copy-start.2 = (bf16[1,12,768,64]{3,2,1,0}, bf16[1,12,768,64]{3,2,1,0}, u32[]) copy-start(%param.4)
      %copy-start.3 = (bf16[768,640]{1,0:S(1)}, bf16[768,640]{1,0}, u32[]) copy-start(%p.5), metadata={op_name="params['up']"}
      %copy.4 = bf16[768,640]{0,1:T(8,128)} copy(%p.5), metadata={op_name="params['backbone']['layers']['3']['up']['kernel']"}
      %convert.5 = f32[640,768]{1,0} convert(%fusion.7), metadata={op_name="jit(program)/attention/convert_element_type"}
      ROOT %all-reduce.1 = f32[8,64]{1,0} all-reduce(%x), replica_groups={}
      %scores = f32[8,12,2048,2048]{3,2,1,0} fusion(%q, %k), kind=kOutput
    """
    assert hlo.collectives(text) == {"all-reduce": 1}
    assert hlo.copies(text, [(12, 768, 3072), (12, 768, 64)]) == [(12, 3072, 768), (1, 12, 768, 64)]
    assert hlo.copies(text, [(12, 768, 3071)]) == []
    assert hlo.copies(text, [(12, 768, 640)]) == [(768, 640)]  # of one layer: no fetching ahead, no activation
    assert hlo.squares(text, 2048) == {(8, 12, 2048, 2048)}
