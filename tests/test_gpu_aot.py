"""GPU programs, compiled here without a GPU: what they hold, what they move, which attention they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import aot, gpu_aot, gpu_device, hlo
from jaxpool.ahead import gpu, missing
from jaxpool.slices import CHIPS, Slice

# BERT's layers at a size that compiles in seconds.
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 2000,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 640,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
}
CASES = (("h100:1", 64), ("h100:1", 128), ("a100-80:1", 2048), ("l4:1", 512))
# Two kv heads, which four devices do not divide: each has them both. And layers of two kinds, with windows.
DECODER = CONFIG | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
WINDOWS = {name: value for name, value in CONFIG.items() if name != "hidden_act"} | {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "max_position_embeddings": 2048,
}
# Heads as models have them; a picture's patches; what shared memory holds least easily.
HEADS = ((32, 512), (64, 577), (72, 729), (96, 2048), (128, 8192), (256, 2048))
CODE = """
import json, sys
from dataclasses import asdict
import jax, jax.numpy as jnp
from benchmarks import aot, gpu_aot
from benchmarks.published import recipe_of
from jaxpool.ahead import mesh_of, prepare
from jaxpool.attention import AttentionMask, attention
from jaxpool.sharding import rows_sharding
from jaxpool.slices import Slice
prepare("gpu")
config, cases, decoder, windows, heads = json.loads(sys.argv[1])
def measure(name, config, where, tokens, **how):
    return asdict(aot.measure(name, recipe_of(config), Slice.parse(where), tokens, "bfloat16", **how))
found = [measure("small", config, *case) for case in cases]
found.append(measure("decoder", decoder, "h100:4", 2048, shards=4))
found.append(measure("windows", windows, "h100:1", 2048))

def kernel(where, width, tokens):
    mesh = mesh_of(Slice.parse(where))
    make = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding(mesh))
    def program(q, k, v, segments):
        mask = AttentionMask(segments, causal=True, window=(4096, 0))
        return attention(q, k, v, mask, soft_cap=50.0, dtype=jnp.bfloat16, backend="flash")
    with jax.set_mesh(mesh):
        q, kv = make(2, tokens, 4, width), make(2, tokens, 2, width)
        return jax.jit(program).lower(q, kv, kv, make(2, tokens, dtype=jnp.int32)).compile().as_text()

def by_the_library():
    gpu_aot.choose_products(triton=False)
    return measure("small", config, *cases[1])

def by_cudnn():
    # There is no GPU, and no cuDNN, to ask for a version.
    from jax._src.cudnn import fused_attention_stablehlo as stablehlo
    from jaxpool.attention import nvidia
    stablehlo.check_cudnn_version = lambda: 91200
    stablehlo.check_compute_capability = lambda capability: True
    nvidia.compute_capability = lambda: (9, 0)
    mesh = mesh_of(Slice.parse("h100:1"))
    make = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding(mesh))
    def program(q, k, v, segments, lengths):
        mask = AttentionMask(segments, causal=True, window=(64, 0), lengths=lengths)
        return attention(q, k, v, mask, dtype=jnp.bfloat16)
    with jax.set_mesh(mesh):
        q, kv, numbers = make(4, 512, 4, 64), make(4, 512, 2, 64), (make(4, n, dtype=jnp.int32) for n in (512, 1))
        return jax.jit(program).lower(q, kv, kv, *numbers).compile().as_text()

kernels = [kernel(where, *case).count(aot.KERNELS["gpu"]) for where in ("l4:1", "h100:1") for case in heads]
print(json.dumps([found, kernels, by_cudnn(), by_the_library()]))
"""


@pytest.fixture(scope="module")
def compiled():
    """Figures of programs, how many kernels each of the attentions has, and cuDNN's. In a process of its own."""
    if reason := missing("gpu"):
        pytest.skip(f"NO PROGRAM IS COMPILED FOR GPUS: {reason}")
    done = run([sys.executable, "-c", CODE, json.dumps([CONFIG, CASES, DECODER, WINDOWS, HEADS])])
    figures, *others = json.loads(done.stdout.splitlines()[-1])
    return dict(zip((*CASES, "shared kv heads", "windows"), figures, strict=True)), *others


@pytest.fixture
def programs(compiled):
    return compiled[0]


def run(command):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(aot.__file__).parent.parent, env=env
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("case", [*CASES, "shared kv heads", "windows"], ids=str)
def test_a_program_compiles(programs, case):
    found = programs[case]
    assert not found["error"]
    assert not found["wrong"]  # of long rows: no [T, T], no copies of weights, a vector a sequence
    assert not found["weight_copies"]


def test_rows_of_128_and_more_take_the_kernel(programs):
    layers = CONFIG["num_hidden_layers"]
    assert [programs[case]["kernels"] for case in CASES] == [0, layers, layers, layers]
    assert programs["windows"]["kernels"] == programs["shared kv heads"]["kernels"] == layers


def test_devices_that_share_layers(programs):
    # After attention and after the MLP of each layer, and of the vocabulary's table.
    assert programs["shared kv heads"]["collectives"] == {"all-reduce": 2 * CONFIG["num_hidden_layers"] + 1}


def test_the_librarys_products_add_the_bias(compiled):
    """Each layer's six products, in the one call: the others would read and write its result once more."""
    assert compiled[3]["traffic"]["products"] == pytest.approx(compiled[0][CASES[1]]["traffic"]["products"], rel=0.02)


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_results_are_rounded_before_they_are_written_out(programs, case):
    """Products read and write 16 bits; all else moves a layer's rows a few times."""
    found, width, mlp = programs[case], CONFIG["hidden_size"], CONFIG["intermediate_size"]
    tokens, layers = found["tokens"] * found["rows"], CONFIG["num_hidden_layers"]
    weights = 4 * width**2 + 2 * width * mlp
    products = layers * 2 * (tokens * (8 * width + 2 * (width + mlp)) + weights)
    # Behind its attention the last layer goes on with one token of each place.
    unwanted = tokens - found["rows"] * min(64, found["tokens"] // 4)
    products -= 2 * unwanted * (2 * width + 2 * (width + mlp))
    assert found["traffic"]["products"] == pytest.approx(products, rel=0.02)
    assert found["traffic"]["kernels"] == pytest.approx(layers * tokens * 2 * 4 * width, rel=0.03)
    # Two norms of 3 rows each, GELU's 2, and the embeddings.
    assert found["traffic"]["rest"] < 1.3 * layers * tokens * 2 * (6 * width + 2 * mlp)


def test_no_bytes_of_what_may_run_any_number_of_times():
    with pytest.raises(ValueError, match=r"loop\.1: a while, which moves what nobody can tell"):
        hlo.traffic("\nENTRY %main {\n  %loop.1 = (f32[2]{0}) while(%x), condition=%a, body=%b\n}\n")


def test_the_kernel_fits_every_head(compiled):
    assert compiled[1] == [1] * (2 * len(HEADS))


def test_rows_of_one_sequence_go_to_cudnn(compiled):
    assert 'custom_call_target="__cudnn$fmhaSoftmax"' in compiled[2]


def test_the_plan_beside_the_compiler(tmp_path):
    if reason := missing("gpu"):
        pytest.skip(f"NO PROGRAM IS COMPILED FOR GPUS: {reason}")
    # A 7B's layers: estimates are for models whose sizes matter.
    sizes = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18_944}
    kind = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | kind | sizes | {"max_position_embeddings": 2048}))
    done = run([sys.executable, "-m", "jaxpool", "plan", tmp_path, "--topology", "h100:1", "--json"])
    found = json.loads(done.stdout)
    planned = found["best"]["plan"]["weights"] + found["best"]["plan"]["activations"]
    assert 0.85 < planned / found["compiled"]["total"] < 1.15


def test_every_kind_of_gpu_has_a_target():
    assert set(gpu.TARGETS) == {name for name, chip in CHIPS.items() if chip.platform == "gpu"}
    for name, target in gpu.TARGETS.items():
        assert target.name in gpu_device.PEAKS
        assert target.memory <= CHIPS[name].memory
        assert f'device_description_str: "{target.name}"' in target.text


def test_bytes_that_a_program_moves():
    text = """
%taken (t: bf16[100,4], i: s32[6]) -> bf16[6,4] {
  %t = bf16[100,4]{1,0} parameter(0)
  %i = s32[6]{0} parameter(1)
  ROOT %gather.1 = bf16[6,4]{1,0} gather(%t, %i), offset_dims={1}
}

%widened (p: bf16[6,8]) -> f32[6,4] {
  %p = bf16[6,8]{1,0} parameter(0)
  %bitcast.1 = bf16[6,8]{1,0} bitcast(%p)
  %half = bf16[6,4]{1,0} slice(%bitcast.1), slice={[0:6], [0:4]}
  ROOT %convert.1 = f32[6,4]{1,0} convert(%half)
}

ENTRY %main (ids: s32[6], table: bf16[100,4], kernel: bf16[4,8]) -> bf16[6,8] {
  %ids = s32[6]{0} parameter(0)
  %table = bf16[100,4]{1,0} parameter(1)
  %kernel = bf16[4,8]{1,0} parameter(2)
  %loop_gather_fusion = bf16[6,4]{1,0} fusion(%table, %ids), kind=kLoop, calls=%taken
  %cublas-lt-matmul.1 = (bf16[6,8]{1,0}, s8[4194304]{0}) custom-call(%loop_gather_fusion, %kernel), custom_call_target="__cublas$lt$matmul"
  %get-tuple-element.1 = bf16[6,8]{1,0} get-tuple-element(%cublas-lt-matmul.1), index=0
  %pallas_call.1 = bf16[6,8]{1,0} custom-call(%get-tuple-element.1), custom_call_target="__gpu$xla.gpu.triton"
  ROOT %loop_convert_fusion = f32[6,4]{1,0} fusion(%pallas_call.1), kind=kLoop, calls=%widened
}
"""
    rows, sums = 6 * 4 * 2, 6 * 8 * 2
    assert hlo.traffic(text) == {
        "products": rows + 4 * 8 * 2 + sums,
        "kernels": 2 * sums,
        # Six rows of the table, their numbers, and what is gathered; half of each sum, and as much in float32.
        "rest": rows + 6 * 4 + rows + sums // 2 + 2 * (sums // 2),
    }


def test_the_table_has_a_cell_for_every_column():
    moved = {"products": 16_384 * 342_000, "kernels": 16_384 * 74_000, "rest": 16_384 * 274_000}
    figures = aot.Figures(
        "bge-base", "h100:1", 512, 32, 1, "bfloat16", planned=2 * 2**20, seconds=5.4, arguments=2**20, traffic=moved,
        flops=0.189e9, weight_flops=0.17e9,
    )  # fmt: skip
    cells = dict(zip(gpu_aot.COLUMNS, aot.line(figures, gpu_aot.cells).strip("| ").split(" | "), strict=True))
    assert (cells["model"], cells["KB a token: products"], cells["attention"]) == ("bge-base", "342", "74")
    assert cells["planned / compiled"] == "2.00"
    # 0.189 GFLOP a token: 172 ns of products, 22 of attention's bytes, 82 of all others, at 989 TFLOP/s and 3.35 TB/s.
    assert cells["MFU at best"] == "69%"
    assert Slice.parse("h100:1") in gpu_aot.TOPOLOGIES
