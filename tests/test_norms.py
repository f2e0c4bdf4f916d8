"""Norms against float64: as XLA computes them, and by our own kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool import native
from jaxpool.norms import layer_norm, rms_norm
from jaxpool.sharding import make_mesh


@pytest.fixture(params=["xla", "kernel"])
def mesh(request):
    """Without a mesh XLA computes them; on one CPU the kernel."""
    if request.param == "xla":
        yield
        return
    if not native.exist():
        pytest.skip("there are no kernels of our own here")
    with jax.set_mesh(make_mesh(jax.devices("cpu")[:1])):
        assert native.here()
        yield


def case(shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(5 + 3 * rng.standard_normal(shape, np.float32), dtype)
    return x, {name: jnp.asarray(rng.standard_normal(shape[-1:], np.float32), dtype) for name in ("scale", "bias")}


def exactly(x, params, epsilon, *, centred, offset=0.0):
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, params["scale"], params.get("bias", 0)))
    x = x - centred * x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * (scale + offset) + bias


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 16), (130, 48), (64, 384), (2, 65, 1000)], ids=str)
def test_norms(mesh, shape, dtype):
    x, params = case(shape, dtype)
    found = jax.jit(lambda x: layer_norm(params, x, 1e-5))(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exactly(x, params, 1e-5, centred=True), rtol=1e-4, atol=3e-5)
    without = {"scale": params["scale"]}
    np.testing.assert_allclose(
        layer_norm(without, x, 1e-5), exactly(x, without, 1e-5, centred=True), rtol=1e-4, atol=3e-5
    )
    np.testing.assert_allclose(
        rms_norm(without, x, 1e-6, 1.0), exactly(x, without, 1e-6, centred=False, offset=1), rtol=1e-5, atol=1e-5
    )
    rounded = layer_norm(params, x, 1e-5, dtype=jnp.bfloat16)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(rounded, np.float32), exactly(x, params, 1e-5, centred=True), rtol=2**-8, atol=1e-4
    )


def test_a_row_that_is_not_finite_stays_alone(mesh):
    x, params = case((40, 50), "float32")
    wanted = np.asarray(layer_norm(params, x, 1e-5, dtype=jnp.bfloat16), np.float32)
    found = layer_norm(params, x.at[3, 7].set(jnp.nan).at[9, 49].set(jnp.inf), 1e-5, dtype=jnp.bfloat16)
    found = np.asarray(found, np.float32)
    assert np.isnan(found[[3, 9]]).all()
    np.testing.assert_array_equal(np.delete(found, [3, 9], 0), np.delete(wanted, [3, 9], 0))


def test_a_constant_row(mesh):
    _, params = case((1, 33), "float32")
    np.testing.assert_array_equal(layer_norm(params, jnp.full((2, 33), 0.5), 1e-12), jnp.stack([params["bias"]] * 2))


def test_derivatives(mesh):
    x, params = case((6, 20), "float32")

    def loss(params, x):
        y = layer_norm(params, x, 1e-5)
        return (jnp.sin(y) * rms_norm({"scale": params["scale"]}, y, 1e-6)).sum()

    found = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    step, rng = 1e-3, np.random.default_rng(1)
    way = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape, np.float32)), (params, x))
    ahead, behind = (loss(*jax.tree.map(lambda a, d, s=s: a + s * d, (params, x), way)) for s in (step, -step))
    along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), found, way)))
    np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=2e-2)


def test_a_batch_of_calls(mesh):
    x, params = case((2, 6, 20), "float32")
    found = jax.vmap(lambda x: layer_norm(params, x, 1e-5))(x)
    np.testing.assert_array_equal(found[1], layer_norm(params, x[1], 1e-5))


@pytest.mark.parametrize("by", native.kernels()["norm"]["float32"] if native.exist() else ())
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kernel(by, dtype, out):
    for width in (1, 7, 16, 64, 65, 200):
        x, params = case((70, width), dtype)
        scale, bias = (params[name].astype(jnp.float32) for name in ("scale", "bias"))
        how = {"epsilon": np.float32(1e-5), "centred": True, "kernel": by}
        found = native.call("norm", jax.ShapeDtypeStruct(x.shape, out), x, scale, bias, **how)
        wanted = exactly(x, params, 1e-5, centred=True)
        limits = {"rtol": 1e-4, "atol": 3e-5} if out == "float32" else {"rtol": 2**-8, "atol": 1e-4}
        np.testing.assert_allclose(np.asarray(found, np.float32), wanted, **limits)
