"""The kernels for x86 CPUs against float64; what they promise beyond them; and a machine without them."""

import math
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from jaxpool import log
from jaxpool.attention import AttentionMask, Options, choose, native, plain
from jaxpool.native import BFLOAT16_UNITS, exist, kernels
from jaxpool.sharding import make_mesh

if not exist() and not ((sys.platform, platform.machine()) == ("linux", "x86_64") and shutil.which("g++")):
    pytest.skip("the kernels need x86-64 Linux and g++", allow_module_level=True)
# Each instruction set with the narrowest floats that it multiplies itself.
KERNELS = kernels()["attention"] if exist() else {"float32": (), "bfloat16": ()}
OWN = [(by, "bfloat16" if by in BFLOAT16_UNITS else "float32") for by in KERNELS["bfloat16"]]
# Tokens of the sequences in each row of 77: shorter and longer than any tile, one token, padding between and behind.
ROWS = ((33, 1, 16, -5, 12), (77,), (), (-3, 74))
MASKS = ({}, {"causal": True}, {"window": (7, 4)}, {"causal": True, "window": (20, 0)}, {"window": (0, 0)})
SIZES = ((3, 3, 32), (6, 2, 20), (4, 1, 64), (2, 2, 128), (1, 1, 1), (2, 1, 80))


def segments_of(rows=ROWS, tokens=77):
    """Numbers of sequences [R, T]; of a negative length: padding."""
    out = np.zeros((len(rows), tokens), np.int32)
    for row, lengths in zip(out, rows, strict=True):
        start = 0
        for number, length in enumerate(lengths, 1):
            row[start : start + abs(length)] = number * (length > 0)
            start += abs(length)
    return out


def case(heads, kv_heads, width, dtype, segments, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = [(*segments.shape, n, width) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(scale * rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def exactly(mask, q, k, v, scale=None):
    """In float64, by hand; padding's rows are zero, as the kernels'."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    visible = np.asarray(mask.dense())[:, None]
    scores = np.where(visible, np.einsum("rtnh,rsnh->rnts", q, k) * (scale or q.shape[-1] ** -0.5), -1e300)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * visible
    return np.einsum("rnts,rsnh->rtnh", weights / np.maximum(weights.sum(-1, keepdims=True), 1), v)


def compute(attend, mask, options=None, **named):
    """`attend`, jitted, as a function of q, k, v."""
    return jax.jit(lambda q, k, v: attend(q, k, v, mask, None, options or Options(q.shape[-1] ** -0.5, None), **named))


def limit(dtype, kernel):
    """Of an error: where weights that sum to 1 are rounded to 8 bits, times values of up to 4."""
    return 4 * 2**-8 if dtype == "bfloat16" and kernel in BFLOAT16_UNITS else 3e-6


def test_they_are_built_here():
    assert exist(), "install jaxpool again to build the module; or this CPU has no AVX2"
    sets = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2")
    for names in (names for dtypes in kernels().values() for names in dtypes.values()):
        assert list(names) == [name for name in sets if name in names]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS["float32"])
def test_float32(kernel, mask, sizes):
    segments = segments_of()
    qkv = case(*sizes, "float32", segments)
    mask = AttentionMask(jnp.asarray(segments), **mask)
    found = compute(native.attend, mask, kernel=kernel)(*qkv)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exactly(mask, *qkv), atol=3e-6)
    assert (np.asarray(found)[segments == 0] == 0).all()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS["bfloat16"])
def test_bfloat16_is_as_near_as_the_einsums_are(kernel, mask, sizes):
    segments = segments_of()
    qkv = case(*sizes, "bfloat16", segments)
    mask = AttentionMask(jnp.asarray(segments), **mask)
    found = compute(native.attend, mask, kernel=kernel)(*qkv)
    np.testing.assert_allclose(found, exactly(mask, *qkv), atol=limit("bfloat16", kernel))
    assert (np.asarray(found)[segments == 0] == 0).all()


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 31, 32, 33, 64, 65, 513, 2100])
@pytest.mark.parametrize(("kernel", "dtype"), OWN)
def test_every_length_of_a_sequence(kernel, dtype, tokens):
    segments = np.ones((1, tokens), np.int32)
    qkv = case(2, 1, 16, dtype, segments)
    mask = AttentionMask(jnp.asarray(segments))
    found = compute(native.attend, mask, kernel=kernel)(*qkv)
    np.testing.assert_allclose(found, exactly(mask, *qkv), atol=limit(dtype, kernel))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sequence_gets_the_same_bits_wherever_it_stands(dtype):
    lengths = (29, 40, 8)
    q, k, v = case(4, 2, 24, dtype, np.zeros((1, 77)))
    first, order = np.cumsum((0, *lengths)), (2, 0, 1)
    moved = np.concatenate([np.arange(first[i], first[i + 1]) for i in order])
    mask, other = (AttentionMask(jnp.asarray(segments_of([ls]))) for ls in (lengths, [lengths[i] for i in order]))
    there = compute(native.attend, mask)(q, k, v)
    elsewhere = compute(native.attend, other)(*(x[:, moved] for x in (q, k, v)))
    np.testing.assert_array_equal(np.asarray(there)[:, moved], elsewhere)


@pytest.mark.parametrize(("kernel", "dtype"), OWN)
def test_extreme_scores(kernel, dtype):
    segments = segments_of()
    mask, options = AttentionMask(jnp.asarray(segments)), Options(1.0, None)
    q, k, v = case(2, 2, 16, dtype, segments, scale=30.0)  # scores of thousands: the softmax is a choice
    found = compute(native.attend, mask, options, kernel=kernel)(q, k, v)
    np.testing.assert_allclose(found, exactly(mask, q, k, v, scale=1), atol=30 * 4 * 2**-8)
    # Scores whose difference float32 only just tells apart.
    found = compute(native.attend, mask, options, kernel=kernel)(1e4 * q, 1e4 * k, v)
    assert np.isfinite(found).all()
    # A NaN, of whatever bits, stays one, and stays in its own sequence.
    broken = q.at[0, 40].set(jnp.asarray(np.uint32(0x7FC70001).view(np.float32)).astype(q.dtype))
    found = np.asarray(compute(native.attend, mask, options, kernel=kernel)(broken, k, v))
    assert np.isnan(found[0, 40]).all()
    assert np.isfinite(np.delete(found, 40, 1)).all()
    found = np.asarray(compute(native.attend, mask, options, kernel=kernel)(q, k.at[0, 40].set(jnp.nan), v))
    assert np.isnan(found[0, 34:50]).all()
    assert np.isfinite(found[0, :34]).all()
    assert np.isfinite(found[1:]).all()


def test_calls_side_by_side():
    segments = np.repeat(np.arange(1, 5), 64)[None].repeat(3, 0)
    mask = AttentionMask(jnp.asarray(segments))
    qkv = case(8, 4, 32, "float32", segments)
    program = compute(native.attend, mask)
    wanted = np.asarray(program(*qkv))
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: np.asarray(program(*qkv)), range(200)):
            np.testing.assert_array_equal(found, wanted)


def test_derivatives_are_the_einsums():
    segments = segments_of()
    qkv = case(4, 2, 16, "float32", segments)
    mask = AttentionMask(jnp.asarray(segments), causal=True)
    weights = jnp.asarray(segments > 0)[..., None, None] * 1.0

    def loss(attend, *qkv):
        return (jnp.sin(attend(*qkv, mask, None, Options(0.25, None))) * weights).sum()

    found = jax.jit(jax.grad(partial(loss, native.attend), (0, 1, 2)))(*qkv)
    for a, b in zip(found, jax.grad(partial(loss, plain.attend), (0, 1, 2))(*qkv), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    ahead = [jax.jvp(partial(loss, attend), qkv, qkv)[1] for attend in (native.attend, plain.attend)]
    np.testing.assert_allclose(*ahead, rtol=1e-4)


def test_a_batch_of_calls():
    segments = segments_of()
    qkv = case(2, 2, 16, "float32", segments)
    mask = AttentionMask(jnp.asarray(segments))
    doubled = jax.vmap(compute(native.attend, mask))(*(jnp.stack([x, 2 * x]) for x in qkv))
    np.testing.assert_array_equal(doubled[1], compute(native.attend, mask)(*(2 * x for x in qkv)))


def test_a_kernel_that_is_not_here():
    segments = segments_of()
    with pytest.raises(Exception, match="this CPU has no such kernel"):
        compute(native.attend, AttentionMask(jnp.asarray(segments)), kernel="avx1024")(
            *case(2, 2, 16, "float32", segments)
        )


def test_arrays_that_do_not_go_together():
    segments = segments_of()
    mask = AttentionMask(jnp.asarray(segments))
    q, k, v = case(3, 3, 16, "float32", segments)
    for wrong in ((q, k[:, :, :2], v[:, :, :2]), (q, k, v[..., :8]), (q, k[:, :-1], v[:, :-1]), (q[:2], k, v)):
        with pytest.raises(Exception, match="sizes do not go together"):
            compute(native.attend, mask)(*wrong)
    with pytest.raises(Exception, match="several dtypes"):
        compute(native.attend, mask)(q, k, v.astype(jnp.bfloat16))


def pick(*, dtype="float32", other=None, bias=None, soft_cap=None, scale=1.0, window=None):
    q, k = (jax.ShapeDtypeStruct((1, 77, 2, 16), x) for x in (dtype, other or dtype))
    with jax.set_mesh(make_mesh(jax.devices()[:1])):
        return choose("auto", q, k, AttentionMask(segments_of(), window=window), bias, Options(scale, soft_cap))


def test_who_gets_them(monkeypatch, caplog):
    monkeypatch.setattr(log, "_said", set())
    caplog.set_level("INFO", "jaxpool")
    assert pick() == pick(dtype="bfloat16") == pick(window=(0, 3)) == "native"
    assert pick(dtype="float16") == pick(other="bfloat16") == pick(bias=0) == pick(soft_cap=30.0) == "einsum"
    assert pick(scale=-1.0) == pick(scale=jnp.ones(())) == pick(window=(-1, 0)) == "einsum"
    monkeypatch.setattr(native, "exist", lambda: False)
    assert pick() == "einsum"
    assert caplog.messages == [
        f"attention: einsum, since native cannot: {reason}"
        for reason in (
            "dtypes are float16 and float16",
            "dtypes are float32 and bfloat16",
            "scores have a bias",
            "scores have a soft cap",
            "the scale is not a positive number",
            "the window is negative",
            "its kernels are not built for this machine",
        )
    ]


# The choice of kernels on a CPU that has what the command line names. The kernels themselves are left out.
CHOICE = """
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <string_view>
#include <vector>
std::vector<std::string_view> offered;
bool offers(std::string_view feature) { return std::count(offered.begin(), offered.end(), feature); }
long granted(long, ...) { return 0; }  // Linux gives the tiles
#define __builtin_cpu_supports offers
#define syscall granted
#include "cpu.cc"
#undef syscall
#include "handler.h"
int main(int count, char** features) {
  using namespace jaxpool;
  offered.assign(features + 1, features + count);
  for (const Target& target : {attention(), product()})
    for (DTypes dtype : {kFloat32, kBFloat16, kInt8}) {
      for (std::string_view name : target.kernels(dtype)) std::printf("%s ", name.data());
      std::puts("");
    }
}
"""
AVX512 = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16")


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    """The kernels that are offered on a CPU with these features: attention's and the products', by dtype."""
    if not shutil.which("g++"):
        pytest.skip("compiles C++: needs g++")
    directory = tmp_path_factory.mktemp("choice")
    native, program = Path(__file__).parent.parent / "native", directory / "choice"
    (directory / "choice.cc").write_text(CHOICE)
    sources = [directory / "choice.cc", native / "attention.cc", native / "product.cc"]
    headers = [f"-I{native}", f"-isystem{Path(jaxlib.__file__).parent / 'include'}"]
    link = ["-no-pie", "-Wl,--unresolved-symbols=ignore-all"]
    subprocess.run(["g++", "-std=c++20", *headers, *sources, "-o", program, *link], check=True)

    def offered(*features):
        lines = subprocess.run([program, *features], capture_output=True, text=True, check=True).stdout.splitlines()
        names = [line.split() for line in lines]
        return [dict(zip(("float32", "bfloat16", "int8"), own, strict=True)) for own in (names[:3], names[3:])]

    return offered


def test_a_kernel_is_offered_where_all_that_it_uses_is_there(choice):
    assert not any(any(found.values()) for found in choice("avx2"))  # without FMA
    attention, product = choice(*AVX512)
    assert (attention["bfloat16"][0], product["bfloat16"][0], product["int8"][0]) == ("avx512_bf16",) * 3
    attention, product = choice(*AVX512, "amx-tile", "amx-bf16", "amx-int8")
    assert all("amx" in names for names in (attention["bfloat16"], *product.values()))


def test_a_virtual_machine_may_have_tiles_for_one_dtype_only(choice):
    attention, product = choice(*AVX512, "amx-tile", "amx-bf16")
    assert "amx" in attention["bfloat16"]
    assert ["amx" in product[dtype] for dtype in ("float32", "bfloat16", "int8")] == [True, True, False]
    attention, product = choice(*AVX512, "amx-tile", "amx-int8")
    assert "amx" not in attention["bfloat16"]
    assert ["amx" in product[dtype] for dtype in ("float32", "bfloat16", "int8")] == [False, False, True]


def in_another_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout


def test_without_the_module_the_einsums_do_it():
    code = """
import sys
sys.modules["jaxpool._native"] = None  # as where it could not be built
import jax, jax.numpy as jnp
from jaxpool import native
from jaxpool.attention import AttentionMask, attention
from jaxpool.sharding import make_mesh
assert native.kernels() == {}
x = jnp.ones((1, 8, 2, 4))
with jax.set_mesh(make_mesh(jax.devices()[:1])):
    print(float(jax.jit(lambda x: attention(x, x, x, AttentionMask(jnp.ones((1, 8), int))))(x).sum()))
"""
    assert math.isclose(float(in_another_process(code)), 64)


def test_a_module_of_a_newer_jaxlib_is_left_alone():
    code = """
import sys, types, logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
def handlers():
    raise RuntimeError("Unsupported API version")
sys.modules["jaxpool._native"] = types.SimpleNamespace(handlers=handlers, kernels=dict)
import jaxpool
jaxpool._native = sys.modules["jaxpool._native"]
from jaxpool import native
assert native.kernels() == native.kernels() == {}
"""
    (line,) = in_another_process(code).splitlines()
    assert "with a newer jaxlib's headers" in line
    assert "Unsupported API version" in line
