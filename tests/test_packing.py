"""Products of kernels laid out for AMX, against float64; and which kernels of a model are laid out so."""

import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxpool import LLM, native, placement
from jaxpool.layers import ACTIVATIONS, dense, einsum
from jaxpool.packing import PackedArray, pack, packs, product
from jaxpool.params import flatten
from jaxpool.quantization import QuantArray, quantise
from jaxpool.sharding import make_mesh
from tests.tiny import tiny_bert

if "amx" not in native.kernels():
    pytest.skip("products by our own kernel need a CPU with AMX", allow_module_level=True)
# A panel has 32 outputs, a tile 16 rows; a step takes 32 inputs (bfloat16) or 64 (int8).
ROWS = ((1,), (16,), (17,), (3, 11), (300,), (513,))
SIZES = (((64,), (96,)), ((40,), (3, 5)), ((2, 33), (70,)), ((1,), (1,)), ((2, 4, 16), (32,)), ((130,), (300,)))


def case(rows, ins, outs, seed=0):
    """x and a kernel of numbers that bfloat16 holds, and a bias."""
    rng = np.random.default_rng(seed)
    x, kernel, bias = (rng.standard_normal(shape, np.float32) for shape in ((*rows, *ins), (*ins, *outs), outs))
    x, kernel = (np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in (2 * x, kernel / math.sqrt(math.prod(ins))))
    return x, kernel, bias


def exactly(x, kernel, ins):
    """In float64."""
    matrix = np.asarray(kernel, np.float64).reshape(math.prod(ins), -1)
    rows = np.asarray(x, np.float64).reshape(-1, math.prod(ins))
    return (rows @ matrix).reshape(*x.shape[: x.ndim - len(ins)], *kernel.shape[len(ins) :])


def equation(ins, outs):
    i, o = "abc"[: len(ins)], "xyz"[: len(outs)]
    return f"...{i},{i}{o}->...{o}"


def error(found, wanted):
    """The largest, of the result or of 1."""
    return (np.abs(np.asarray(found, np.float64) - wanted) / np.maximum(1, np.abs(wanted))).max()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_product(rows, sizes):
    ins, outs = sizes
    x, kernel, bias = case(rows, ins, outs)
    wanted = exactly(x, kernel, ins)
    found = jax.jit(lambda x: einsum(equation(ins, outs), x, pack(kernel, len(ins))))(x)
    assert (found.shape, found.dtype) == (wanted.shape, jnp.float32)
    assert error(found, wanted) < 2e-6
    params = {"kernel": pack(kernel, len(ins)), "bias": bias}
    found = dense(params, jnp.asarray(x), equation(ins, outs), dtype=jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    assert error(found, wanted + bias) < 2**-8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_follows_it(activation, dtype):
    ins, outs = (96,), (72,)
    x, kernel, bias = case((50,), ins, outs)
    other = np.random.default_rng(1).standard_normal((50, 72), np.float32)
    with jax.enable_x64():
        wanted = np.asarray(ACTIVATIONS[activation](jnp.asarray(exactly(x, kernel, ins) + bias, jnp.float64)))
    params, limit = {"kernel": pack(kernel, 1), "bias": bias}, {"float32": 3e-6, "bfloat16": 2**-8}[dtype]
    named = {"activation": activation, "dtype": dtype}
    assert error(dense(params, x, **named), wanted) < limit
    assert error(dense(params, x, **named, add=other), wanted + other) < limit
    assert error(dense(params, x, **named, times=other), wanted * other) < limit
    rounded = jnp.asarray(other, jnp.bfloat16)
    assert error(dense(params, x, **named, add=rounded), wanted + np.asarray(rounded, np.float64)) < limit


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu", "silu", "relu"])
def test_activations_of_every_size(activation):
    """An identity kernel passes numbers through: near 0, in the tails, huge, infinite, NaN."""
    x = np.concatenate([np.linspace(-12, 12, 4001), 10.0 ** np.arange(-30, 31), -(10.0 ** np.arange(-30, 31))])
    x = np.asarray(jnp.asarray(np.resize(x, (129, 32)), jnp.bfloat16))
    params = {"kernel": pack(np.eye(32).astype(jnp.bfloat16), 1)}
    with jax.enable_x64():
        wanted = np.asarray(ACTIVATIONS[activation](jnp.asarray(x, jnp.float64)))
    assert error(dense(params, x, activation=activation), wanted) < 1e-6
    special = np.zeros((3, 32), np.float32)
    special[0, 3], special[1, 4], special[2, 5] = np.nan, np.inf, 3e38
    found = np.asarray(dense(params, special.astype(jnp.bfloat16), activation=activation))
    assert np.isnan(found[0]).all()  # NaN times 0 is NaN
    np.testing.assert_allclose(found[2, 5], np.float32(special[2, 5].astype(jnp.bfloat16)), rtol=1e-6)


@pytest.mark.parametrize("inputs", [64, 40])
def test_a_row_that_is_not_finite_stays_alone(inputs):
    x, kernel, _ = case((70,), (inputs,), (48,))
    wanted = np.asarray(einsum("rd,df->rf", x, pack(kernel, 1)))
    x = x.copy()
    x[20], x[69, -1] = np.nan, np.inf
    found = np.asarray(einsum("rd,df->rf", x, pack(kernel, 1)))
    assert not np.isfinite(found[[20, 69]]).any()
    np.testing.assert_array_equal(np.delete(found, [20, 69], 0), np.delete(wanted, [20, 69], 0))


def test_a_row_gets_the_same_bits_wherever_it_stands():
    x, kernel, _ = case((300,), (130,), (70,))
    packed, order = pack(kernel, 1), np.random.default_rng(2).permutation(300)
    found = np.asarray(einsum("rd,df->rf", x, packed))
    np.testing.assert_array_equal(einsum("rd,df->rf", x[order], packed), found[order])
    np.testing.assert_array_equal(einsum("rd,df->rf", x[:1], packed), found[:1])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_of_8_bit_integers(sizes):
    ins, outs = sizes
    x, kernel, bias = case((37,), ins, outs)
    values, scale = quantise(kernel, len(ins), rotated=True)
    plain = QuantArray(values, scale, activations=True)
    packed = QuantArray(pack(values, len(ins)), scale, activations=True)
    by_xla, found = (
        dense({"kernel": kernel, "bias": bias}, x, equation(ins, outs), activation="gelu") for kernel in (plain, packed)
    )
    np.testing.assert_allclose(found, by_xla, atol=1e-6)


def test_sums_of_8_bit_integers_are_exact():
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(-127, 128, shape, np.int8) for shape in ((50, 1000), (1000, 40)))
    found = product(x, pack(kernel, 1), scales=(jnp.ones(50), jnp.ones(40)))
    np.testing.assert_array_equal(found, x.astype(np.int64) @ kernel.astype(np.int64))


def test_layers_are_packed_as_each_alone():
    kernels = np.stack([case((1,), (2, 33), (70,), seed)[1] for seed in range(3)])
    together = pack(kernels, 2, stacked=True)
    assert (together.inputs, together.outputs) == ((2, 33), (70,))
    for number, kernel in enumerate(kernels):
        np.testing.assert_array_equal(together.panels[number], pack(kernel, 2).panels)


def test_calls_side_by_side():
    x, kernel, bias = case((600,), (128,), (512,))
    params = {"kernel": pack(kernel, 1), "bias": bias}
    program = jax.jit(lambda x: dense(params, x, activation="gelu", dtype="bfloat16"))
    wanted = np.asarray(program(x))
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: np.asarray(program(x)), range(100)):
            np.testing.assert_array_equal(found, wanted)


def test_a_batch_of_calls():
    x, kernel, _ = case((40,), (64,), (32,))
    packed = pack(kernel, 1)
    found = jax.vmap(lambda x: einsum("rd,df->rf", x, packed))(jnp.stack([x, x[::-1]]))
    np.testing.assert_array_equal(found[1], einsum("rd,df->rf", x[::-1], packed))


def test_arrays_that_do_not_go_together():
    x, kernel, bias = case((4,), (64,), (32,))
    packed = pack(kernel, 1)
    wrong = PackedArray(packed.panels[:, :1], (64,), (32,))
    for call in (lambda: product(x, wrong), lambda: product(x, packed, bias=bias[:5])):
        with pytest.raises(Exception, match="sizes do not go together"):
            call()
    with pytest.raises(Exception, match="dtypes"):
        product(jnp.asarray(x, jnp.float32), packed)
    with pytest.raises(Exception, match="no such activation"):
        product(x, packed, activation="step")


def test_where_kernels_are_packed():
    one, two = (make_mesh(jax.devices("cpu")[:1]), AbstractMesh((2, 1), ("data", "model")))
    assert packs(one, jnp.bfloat16)
    assert packs(one, jnp.int8)
    assert not packs(one, jnp.float32)
    assert not packs(two, jnp.bfloat16)


@pytest.mark.parametrize("quantization", [None, "int8", "int8_weight_only"])
@pytest.mark.parametrize("depth", [2, placement.DEEP + 1])
def test_a_model(tmp_path, monkeypatch, depth, quantization):
    """With and without: the same vectors, but for roundings."""
    tiny_bert(tmp_path / "model", layers=depth)
    texts = ["a", "one two three", "four five six seven eight nine ten"]

    def vectors():
        with LLM(tmp_path / "model", dtype="bfloat16", quantization=quantization) as llm:
            leaves = flatten(llm.engine.runner.replicas[0]._params["backbone"])
            return llm.embed_array(texts), [leaf for path, leaf in leaves.items() if path.endswith("kernel")]

    found, kernels = vectors()
    values = [kernel.values if isinstance(kernel, QuantArray) else kernel for kernel in kernels]
    packed = sum(isinstance(value, PackedArray) for value in values)
    assert packed == (0 if quantization == "int8_weight_only" else 6 * (depth if depth <= placement.DEEP else 1))
    monkeypatch.setattr(placement, "packs", lambda mesh, dtype: False)
    plain, _ = vectors()
    assert ((found * plain).sum(-1) > 0.999).all()
