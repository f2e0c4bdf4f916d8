"""8-bit kernels: the arithmetic against numpy's integers, what is quantised, and how near the answers stay."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.corpus import docstrings
from jaxpool import LLM, native
from jaxpool.layers import einsum
from jaxpool.llm import resolve_dtype
from jaxpool.params import ParamSpec, flatten
from jaxpool.placement import load_to_mesh
from jaxpool.program import device_specs, param_specs
from jaxpool.quantization import LARGEST, QuantArray, check_kind, quantise, quantised_specs, rotate, round_rows
from jaxpool.recipe import read_recipe
from jaxpool.sharding import make_mesh
from tests.tiny import tiny_bert, tiny_jina

SIZES = {"r": 2, "t": 5, "d": 48, "n": 3, "h": 12, "f": 20, "c": 2, "k": 2, "g": 4}
EQUATIONS = {"rtd,df->rtf": 1, "rtd,dnh->rtnh": 1, "rtnh,nhd->rtd": 2, "rtd,dcnh->rtcnh": 1, "rtd,dkgh->rtkgh": 1}
TEXTS = [*docstrings()[::60], "hello world", "cats", "a dog runs in the park", "query: what is JAX?"]


def operands(equation, seed=0):
    rng = np.random.default_rng(seed)
    left, right = equation.split("->")[0].split(",")
    x, kernel = (rng.standard_normal([SIZES[axis] for axis in axes]).astype(np.float32) for axes in (left, right))
    x.reshape(-1, x.shape[-1])[:, 3] *= 30  # a feature far larger than the others
    return x, kernel


def test_rotating_twice_gives_the_same_and_once_the_same_products():
    x, kernel = operands("rtd,df->rtf")
    np.testing.assert_allclose(rotate(rotate(x)), x, atol=1e-5)
    np.testing.assert_allclose(rotate(x) @ rotate(kernel.T).T, x @ kernel, rtol=1e-4, atol=1e-4)
    odd = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(rotate(odd), odd)  # blocks of one
    assert np.abs(rotate(x)).max() < np.abs(x).max() / 2


@pytest.mark.parametrize(("equation", "inputs"), EQUATIONS.items())
def test_a_product_is_numpys_of_the_integers(equation, inputs):
    x, kernel = operands(equation)
    values, scale = quantise(kernel, inputs, rotated=True)
    assert values.dtype == np.int8
    assert np.abs(values).max() == LARGEST
    found = np.asarray(einsum(equation, jnp.asarray(x), QuantArray(values, scale, activations=True)))
    turned = rotate(x).astype(np.float64)
    axes = tuple(range(-inputs, 0))
    step = np.abs(turned).max(axes, keepdims=True) / LARGEST
    exact = np.einsum(equation, np.rint(turned / step), values.astype(np.float64))
    wanted = exact * step.reshape(*step.shape[:-inputs], *(1,) * (kernel.ndim - inputs)) * scale
    # A number that lies between two integers may be rounded either way.
    np.testing.assert_allclose(found, wanted, atol=2 * float(step.max() * scale.max()) * LARGEST)
    np.testing.assert_allclose(found, np.einsum(equation, x, kernel), atol=0.05 * np.abs(x).max() * inputs * 3)
    cosine = (found * (right := np.einsum(equation, x, kernel))).sum() / np.linalg.norm(found) / np.linalg.norm(right)
    assert cosine > 0.9995


@pytest.mark.parametrize(("equation", "inputs"), EQUATIONS.items())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_alone(equation, inputs, dtype):
    x, kernel = operands(equation)
    values, scale = quantise(kernel, inputs, rotated=False)
    assert np.abs(values * scale - kernel).max() <= 0.5001 * scale.max()
    x = jnp.asarray(x, dtype)
    found = einsum(equation, x, QuantArray(values, scale, activations=False))
    assert found.dtype == jnp.float32
    wanted = np.einsum(equation, np.asarray(x, np.float32), values * scale)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_rows_of_zeros_and_channels_of_zeros_stay_zero():
    values, scale = quantise(np.zeros((16, 4), np.float32), 1, rotated=True)
    np.testing.assert_array_equal(scale, 1)
    for activations in (True, False):
        found = einsum("td,df->tf", jnp.zeros((3, 16)), QuantArray(values, scale, activations))
        np.testing.assert_array_equal(found, 0)


def test_only_kernels_of_layers_are_quantised():
    specs = {
        "layers": {"kernel": ParamSpec((3, 8, 2, 4), ("layers", "embed", "heads", "head_dim"), inputs=1)},
        "embedding": ParamSpec((9, 8), (None, "embed")),
        "head": {"kernel": ParamSpec((8, 2), ("embed", None), "float32", inputs=1)},
    }
    assert quantised_specs(specs, None) is specs
    found = quantised_specs(specs, "int8")
    assert found["embedding"] is specs["embedding"]
    assert found["head"] == specs["head"]
    kernel = found["layers"]["kernel"]
    assert (kernel.values.dtype, kernel.scale.dtype, kernel.activations) == ("int8", "float32", True)
    assert (kernel.scale.shape, kernel.scale.axes) == ((3, 2, 4), ("layers", "heads", "head_dim"))
    assert not quantised_specs(specs, "int8_weight_only")["layers"]["kernel"].activations


@pytest.mark.parametrize("kind", ["int4", "fp8", "", "INT8"])
def test_another_kind_is_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="expected one of"):
        check_kind(kind)
    with pytest.raises(ValueError, match=rf"quantization is '{kind}', expected one of \[None, 'int8'"):
        LLM(tiny_bert(tmp_path), quantization=kind)


@pytest.fixture(scope="module")
def exact():
    with LLM("all-MiniLM-L6-v2", dtype="float32") as llm:
        return llm.embed_array(TEXTS), llm.memory_plan()


@pytest.mark.parametrize("kind", ["int8", "int8_weight_only"])
def test_minilm_stays_near(kind, exact):
    vectors, plan = exact
    with LLM("all-MiniLM-L6-v2", dtype="float32", quantization=kind) as llm:
        found = llm.embed_array(TEXTS)
        own = llm.memory_plan()
    assert (found * vectors).sum(1).min() >= 0.998
    layers = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert plan.weights - own.weights == 3 * layers - 6 * 4 * (5 * 384 + 1536)  # the scales, a float32 a channel
    assert own.parameters == plan.parameters


def test_what_a_program_takes_is_declared(tmp_path):
    recipe = replace(read_recipe(tiny_bert(tmp_path)), quantization="int8")
    params = load_to_mesh(recipe, make_mesh(jax.local_devices()[:1]), "bfloat16")
    declared, held = flatten(param_specs(recipe)), flatten(device_specs(recipe))
    assert {path for path in held if isinstance(held[path], QuantArray)} == {
        path for path in declared if "layers" in path and path.endswith("kernel")
    }
    shapes = jax.tree.map(lambda spec: (spec.shape, spec.dtype_or("bfloat16")), device_specs(recipe))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == shapes


def test_adapters_beside_quantised_kernels(tmp_path):
    directory = tiny_jina(tmp_path)
    texts = ["a stitch in time saves nine", "hello, my name is nobody", "fox"]
    with LLM(directory, dtype="float32") as llm:
        wanted = llm.embed_array(texts)
    with LLM(directory, dtype="float32", quantization="int8") as llm:
        found = llm.embed_array(texts)
    assert (found * wanted).sum(1).min() >= 0.995


def test_the_dtype_between_8_bit_products(monkeypatch):
    monkeypatch.setattr(native, "best", lambda name, dtype: "amx")
    assert resolve_dtype("auto", "cpu", "int8") == jnp.bfloat16
    assert resolve_dtype("float32", "cpu", "int8") == jnp.float32
    assert resolve_dtype("auto", "cpu", "int8_weight_only") == resolve_dtype("auto", "cpu") == jnp.float32
    monkeypatch.setattr(native, "best", lambda name, dtype: "avx512")
    assert resolve_dtype("auto", "cpu", "int8") == jnp.float32


@pytest.mark.parametrize("by", native.kernels()["quantise"]["float32"] if native.exist() else ())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 64), 1), ((3, 4, 40), 1), ((2, 3, 4, 12), 2), ((7, 1), 1), ((6, 3, 33), 2), ((5, 112), 1)]
)
def test_rows_are_rounded_by_our_own_kernel_as_by_xla(shape, axes, dtype, by):
    x = jnp.asarray(5 * np.random.default_rng(0).standard_normal(shape, np.float32), dtype).at[0].set(0)
    by_xla = jax.jit(lambda x: round_rows(x, axes))(x)
    with jax.set_mesh(make_mesh(jax.local_devices()[:1])):
        lowered = jax.jit(lambda x: round_rows(x, axes, by)).lower(x)
        assert "jaxpool_quantise" in lowered.as_text()
        values, step = lowered.compile()(x)
    assert (values.shape, step.shape) == (by_xla[0].shape, by_xla[1].shape)
    assert np.abs(np.asarray(values, int) - np.asarray(by_xla[0], int)).max() <= 1  # where it lies in the middle
    np.testing.assert_allclose(step, by_xla[1], rtol=1e-6)
    assert not np.asarray(values)[0].any()


@pytest.mark.parametrize("by", native.kernels()["quantise"]["float32"] if native.exist() else ())
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_rounded_alone(value, by):
    x = np.random.default_rng(0).standard_normal((7, 64), np.float32)
    wanted, bad = round_rows(jnp.asarray(x), 1, by), [1, 6]  # rows are computed four at a time
    x[bad, 5] = value
    found = round_rows(jnp.asarray(x), 1, by)
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.delete(array, bad, 0), np.delete(expected, bad, 0))
    assert not np.isfinite(np.asarray(found[1])[bad]).any()
