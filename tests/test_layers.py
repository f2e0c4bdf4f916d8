"""The one product that all families go through."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool import layers
from jaxpool.equations import in_kernel_order
from jaxpool.layers import dense, einsum

SIZES = {"r": 2, "t": 3, "n": 4, "h": 5, "d": 6, "c": 2, "f": 3, "y": 4, "x": 5, "p": 7}


def operands(equation):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.standard_normal([SIZES[letter] for letter in axes], np.float32))
        for axes in equation.split("->")[0].split(",")
    ]


@pytest.mark.parametrize("equation", ["rtnh,nhd->rtd", "rtd,dnh->rtnh", "rpcfyx,cfyxd->rpd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_copies_neither_operand(equation, dtype):
    x, kernel = (operand.astype(dtype) for operand in operands(equation))
    compiled = jax.jit(lambda x, kernel: einsum(equation, x, kernel)).lower(x, kernel).compile()
    assert not re.search(r"\b(copy|transpose)\(", compiled.as_text())
    wanted = np.einsum(equation, np.asarray(x, np.float32), np.asarray(kernel, np.float32))
    np.testing.assert_allclose(compiled(x, kernel), wanted, rtol=1e-5, atol=1e-5)


def test_letters_sort_as_the_kernels_axes_lie():
    assert in_kernel_order("rtnh,nhd->rtd") == "deab,abc->dec"
    assert in_kernel_order("...d,df->...f") == "...a,ab->...b"


@pytest.mark.parametrize("equation", ["rtnh,nhd->rtd", "rtd,dnh->rtnh"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gpus_sums_are_rounded_at_once(equation, bias, monkeypatch):
    """In bfloat16, with their bias: the one call of a library. float32 stays float32."""
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    x, kernel = (operand.astype(jnp.bfloat16) for operand in operands(equation))
    outputs = kernel.shape[-1:] if equation.endswith("d") else kernel.shape[1:]
    params = {"kernel": kernel}
    if bias:
        params["bias"] = jnp.linspace(-1, 1, math.prod(outputs)).reshape(outputs).astype(jnp.bfloat16)

    def program(params, x):
        return dense(params, x, equation, activation="gelu")

    exact = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
    wanted, found = program(*exact), program(params, x)
    assert found.dtype == wanted.dtype == jnp.float32
    assert not np.array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, rtol=2 * float(jnp.finfo(jnp.bfloat16).eps), atol=0.02)
    for arguments, dtype in (((params, x), jnp.bfloat16), (exact, jnp.float32)):
        products = [e for e in jax.make_jaxpr(program)(*arguments).eqns if e.primitive.name == "dot_general"]
        assert [e.outvars[0].aval.dtype for e in products] == [dtype]
