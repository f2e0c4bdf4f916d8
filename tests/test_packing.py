"""Products of kernels laid out for a CPU, against float64; and which kernels of a model are laid out so."""

import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxpool import LLM, native, packing, placement
from jaxpool.layers import ACTIVATIONS, dense, einsum
from jaxpool.packing import PackedArray, pack, packs, product
from jaxpool.params import flatten
from jaxpool.quantization import QuantArray, quantise
from jaxpool.sharding import make_mesh
from tests.tiny import tiny_bert

if not native.exist():
    pytest.skip("there are no kernels of our own here", allow_module_level=True)
# Each instruction set with what it multiplies of floats.
KERNELS = native.kernels()["product"]
FLOATS = [(by, dtype) for dtype in ("float32", "bfloat16") for by in KERNELS[dtype]]
# A panel has 32 outputs, a tile 16 rows; a step takes 32 inputs (bfloat16) or 64 (int8). Float32 sums are held for 384.
ROWS = ((0,), (1,), (16,), (17,), (3, 11), (300,), (513,))
SIZES = (
    ((64,), (96,)),
    ((40,), (3, 5)),
    ((2, 33), (70,)),
    ((1,), (1,)),
    ((2, 4, 16), (32,)),
    ((800,), (300,)),
    ((96,), (800,)),
)


def case(rows, ins, outs, seed=0, dtype="bfloat16"):
    """x and a kernel of numbers that bfloat16 holds, and a bias."""
    rng = np.random.default_rng(seed)
    x, kernel, bias = (rng.standard_normal(shape, np.float32) for shape in ((*rows, *ins), (*ins, *outs), outs))
    x, kernel = (np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in (2 * x, kernel / math.sqrt(math.prod(ins))))
    return x.astype(jnp.dtype(dtype)), kernel.astype(jnp.dtype(dtype)), bias


def exactly(x, kernel, ins):
    """In float64."""
    matrix = np.asarray(kernel, np.float64).reshape(math.prod(ins), -1)
    rows = np.asarray(x, np.float64).reshape(-1, math.prod(ins))
    return (rows @ matrix).reshape(*x.shape[: x.ndim - len(ins)], *kernel.shape[len(ins) :])


@pytest.fixture(params=FLOATS, ids="-".join)
def unit(request):
    return request.param


@pytest.fixture
def by(unit):
    return unit[0]


@pytest.fixture
def takes(unit):
    """The dtype of the operands."""
    return unit[1]


def equation(ins, outs):
    i, o = "abc"[: len(ins)], "xyz"[: len(outs)]
    return f"...{i},{i}{o}->...{o}"


def error(found, wanted):
    """The largest, of the result or of 1."""
    return (np.abs(np.asarray(found, np.float64) - wanted) / np.maximum(1, np.abs(wanted))).max(initial=0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_product(by, takes, rows, sizes):
    ins, outs = sizes
    x, kernel, bias = case(rows, ins, outs, dtype=takes)
    wanted, packed = exactly(x, kernel, ins), pack(kernel, len(ins))
    found = jax.jit(lambda x: product(x, packed, by=by))(x)
    assert (found.shape, found.dtype) == (wanted.shape, jnp.float32)
    assert error(found, wanted) < 3e-6
    found = product(jnp.asarray(x), packed, bias=jnp.asarray(bias), dtype=jnp.bfloat16, by=by)
    assert found.dtype == jnp.bfloat16
    assert error(found, wanted + bias) < 2**-8


@pytest.mark.parametrize("by", KERNELS["float32"])
def test_float32_keeps_every_digit(by):
    """Numbers of all 24 digits and of many sizes, also where a unit multiplies less precise ones."""
    rng = np.random.default_rng(0)
    size = np.exp2(rng.integers(-30, 30, (100, 1))).astype(np.float32)
    x, kernel = size * rng.standard_normal((100, 800), np.float32), rng.standard_normal((800, 70), np.float32)
    found = product(jnp.asarray(x), pack(kernel, 1), by=by)
    wanted, limit = exactly(x, kernel, (800,)), np.abs(x).astype(np.float64) @ np.abs(kernel)
    assert (np.abs(found - wanted) / limit).max() < 2**-22
    alone = np.diag(rng.standard_normal(800).astype(np.float32))  # one product a sum
    np.testing.assert_allclose(product(alone, pack(kernel, 1), by=by), alone @ kernel, rtol=2**-22)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer(sizes, dtype):
    """As it is called: packed or not, the same but for roundings."""
    ins, outs = sizes
    x, kernel, bias = case((2, 9), ins, outs, dtype=dtype)
    plain, packed = ({"kernel": k, "bias": bias} for k in (jnp.asarray(kernel), pack(kernel, len(ins))))
    np.testing.assert_allclose(
        dense(packed, x, equation(ins, outs)), dense(plain, x, equation(ins, outs)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        einsum(equation(ins, outs), x, packed["kernel"]),
        einsum(equation(ins, outs), x, plain["kernel"]),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_follows_it(by, takes, activation, dtype):
    ins, outs = (96,), (72,)
    x, kernel, bias = case((50,), ins, outs, dtype=takes)
    other = np.random.default_rng(1).standard_normal((50, 72), np.float32)
    with jax.enable_x64():
        wanted = np.asarray(ACTIVATIONS[activation](jnp.asarray(exactly(x, kernel, ins) + bias, jnp.float64)))
    limit = {"float32": 3e-6, "bfloat16": 2**-8}[dtype]
    own = packing.ACTIVATIONS.get(activation)
    if own is None:
        found = dense({"kernel": pack(kernel, 1), "bias": bias}, x, activation=activation, dtype=dtype, add=other)
        assert error(found, wanted + other) < limit
        return
    named = {"activation": own, "dtype": jnp.dtype(dtype), "bias": jnp.asarray(bias), "by": by}
    packed = pack(kernel, 1)
    assert error(product(jnp.asarray(x), packed, **named), wanted) < limit
    assert error(product(jnp.asarray(x), packed, **named, add=jnp.asarray(other)), wanted + other) < limit
    assert error(product(jnp.asarray(x), packed, **named, times=jnp.asarray(other)), wanted * other) < limit
    rounded = jnp.asarray(other, jnp.bfloat16)
    found = product(jnp.asarray(x), packed, **named, add=rounded)
    assert error(found, wanted + np.asarray(rounded, np.float64)) < limit


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu", "silu", "relu"])
def test_activations_of_every_size(by, takes, activation):
    """An identity kernel passes numbers through: near 0, in the tails, huge, infinite, NaN."""
    x = np.concatenate([np.linspace(-12, 12, 4001), 10.0 ** np.arange(-30, 31), -(10.0 ** np.arange(-30, 31))])
    x = np.resize(x, (129, 32)).astype(jnp.dtype(takes))
    packed = pack(np.eye(32).astype(x.dtype), 1)
    with jax.enable_x64():
        wanted = np.asarray(ACTIVATIONS[activation](jnp.asarray(x, jnp.float64)))
    own = packing.ACTIVATIONS[activation]
    assert error(product(jnp.asarray(x), packed, activation=own, by=by), wanted) < 1e-6
    brief = np.asarray(product(jnp.asarray(x), packed, activation=own, dtype=jnp.bfloat16, by=by), np.float64)
    half = np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-126))) - 8)  # of its last digit
    assert (np.abs(brief - wanted) <= 1.25 * half + 3e-6).all()
    special = np.zeros((3, 32), x.dtype)
    special[0, 3], special[1, 4], special[2, 5] = np.nan, np.inf, 3e38
    for dtype, limit in (jnp.float32, 1e-6), (jnp.bfloat16, 2**-8):
        found = np.asarray(product(jnp.asarray(special), packed, activation=own, dtype=dtype, by=by), np.float32)
        assert np.isnan(found[0]).all()  # NaN times 0 is NaN, and so is infinity
        assert not np.isfinite(found[1]).any()
        np.testing.assert_allclose(found[2, 5], np.float32(special[2, 5]), rtol=limit)


@pytest.mark.parametrize("inputs", [64, 40])
def test_a_row_that_is_not_finite_stays_alone(by, takes, inputs):
    x, kernel, _ = case((70,), (inputs,), (48,), dtype=takes)
    wanted = np.asarray(product(jnp.asarray(x), pack(kernel, 1), by=by))
    x = x.copy()
    x[20], x[69, -1] = np.nan, np.inf
    found = np.asarray(product(jnp.asarray(x), pack(kernel, 1), by=by))
    assert not np.isfinite(found[[20, 69]]).any()
    np.testing.assert_array_equal(np.delete(found, [20, 69], 0), np.delete(wanted, [20, 69], 0))


def test_a_row_gets_the_same_bits_wherever_it_stands(by, takes):
    x, kernel, _ = case((300,), (800,), (70,), dtype=takes)
    packed, order = pack(kernel, 1), np.random.default_rng(2).permutation(300)
    found = np.asarray(product(jnp.asarray(x), packed, by=by))
    np.testing.assert_array_equal(product(jnp.asarray(x[order]), packed, by=by), found[order])
    np.testing.assert_array_equal(product(jnp.asarray(x[:1]), packed, by=by), found[:1])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_of_8_bit_integers(sizes):
    ins, outs = sizes
    x, kernel, bias = case((37,), ins, outs)
    values, scale = quantise(kernel, len(ins), rotated=True)
    plain = QuantArray(values, scale, activations=True)
    packed = QuantArray(pack(values, len(ins)), scale, activations=True)
    by_xla, found = (dense({"kernel": kernel, "bias": bias}, x, equation(ins, outs)) for kernel in (plain, packed))
    np.testing.assert_allclose(found, by_xla, rtol=1e-6, atol=1e-6)
    # Beside the true GELU: XLA's own is nearly as far from it, at -5.2 to the other side.
    with jax.enable_x64():
        wanted = np.asarray(ACTIVATIONS["gelu"](jnp.asarray(found, jnp.float64)))
    found = dense({"kernel": packed, "bias": bias}, x, equation(ins, outs), activation="gelu")
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [(50, 1000, 40), (1, 2000, 33), (300, 64, 128), (300, 700, 800), (7, 3, 1)], ids=str)
@pytest.mark.parametrize("by", KERNELS["int8"])
def test_sums_of_8_bit_integers_are_exact(by, sizes):
    rng, (rows, inputs, outputs) = np.random.default_rng(0), sizes
    x, kernel = (rng.integers(-127, 128, shape, np.int8) for shape in ((rows, inputs), (inputs, outputs)))
    x[0], kernel[:, 0] = 127, -127
    found = product(x, pack(kernel, 1), scales=(jnp.ones(rows), jnp.ones(outputs)), by=by)
    np.testing.assert_array_equal(found, x.astype(np.int64) @ kernel.astype(np.int64))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_layers_are_packed_as_each_alone(dtype):
    kernels = np.stack([case((1,), (2, 33), (70,), seed)[1] for seed in range(3)]).astype(jnp.dtype(dtype))
    together = pack(kernels, 2, stacked=True)
    assert (together.inputs, together.outputs) == ((2, 33), (70,))
    for number, kernel in enumerate(kernels):
        np.testing.assert_array_equal(together.panels[number], pack(kernel, 2).panels)


def test_calls_side_by_side(by, takes):
    x, kernel, bias = case((600,), (128,), (512,), dtype=takes)
    packed = pack(kernel, 1)
    program = jax.jit(lambda x: product(x, packed, bias=jnp.asarray(bias), activation="gelu", by=by))
    wanted = np.asarray(program(x))
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: np.asarray(program(x)), range(100)):
            np.testing.assert_array_equal(found, wanted)


def test_a_batch_of_calls(by, takes):
    x, kernel, _ = case((40,), (64,), (32,), dtype=takes)
    packed = pack(kernel, 1)
    found = jax.vmap(lambda x: product(x, packed, by=by))(jnp.stack([x, x[::-1]]))
    np.testing.assert_array_equal(found[1], product(jnp.asarray(x[::-1]), packed, by=by))


def test_arrays_that_do_not_go_together(by, takes):
    x, kernel, bias = (jnp.asarray(array) for array in case((4,), (64,), (32,), dtype=takes))
    packed = pack(np.asarray(kernel), 1)
    wrong = PackedArray(packed.panels[:, :1], (64,), (32,))
    for call in (lambda: product(x, wrong, by=by), lambda: product(x, packed, bias=bias[:5], by=by)):
        with pytest.raises(Exception, match="sizes do not go together"):
            call()
    with pytest.raises(Exception, match="dtypes"):
        product(x.astype(jnp.float16), packed, by=by)
    with pytest.raises(Exception, match="no such activation"):
        product(x, packed, activation="step", by=by)
    with pytest.raises(Exception, match="no such kernel"):
        product(x, packed, by="avx1024")


def test_where_kernels_are_packed():
    one, two = (make_mesh(jax.devices("cpu")[:1]), AbstractMesh((2, 1), ("data", "model")))
    assert all(packs(one, dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int8))
    assert not packs(one, jnp.float16)
    assert not packs(two, jnp.float32)


@pytest.mark.parametrize("quantization", [None, "int8", "int8_weight_only"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model(tmp_path, monkeypatch, dtype, stacked, quantization):
    """With and without: the same vectors, but for roundings."""
    tiny_bert(tmp_path / "model", layers=3)
    monkeypatch.setattr(placement, "DEEP_OF_KERNELS", 2 if stacked else 3)
    texts = ["a", "one two three", "four five six seven eight nine ten"]

    def vectors():
        with LLM(tmp_path / "model", dtype=dtype, quantization=quantization) as llm:
            leaves = flatten(llm.engine.runner.replicas[0]._params["backbone"])
            return llm.embed_array(texts), [leaf for path, leaf in leaves.items() if path.endswith("kernel")]

    found, kernels = vectors()
    values = [kernel.values if isinstance(kernel, QuantArray) else kernel for kernel in kernels]
    packed = sum(isinstance(value, PackedArray) for value in values)
    assert packed == (0 if quantization == "int8_weight_only" else 6 * (1 if stacked else 3))
    monkeypatch.setattr(placement, "packs", lambda mesh, dtype: False)
    plain, _ = vectors()
    if dtype == "float32" and quantization is None:
        np.testing.assert_allclose(found, plain, atol=1e-6)
    assert ((found * plain).sum(-1) > 0.999).all()
