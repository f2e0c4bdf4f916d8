"""The one product that all families go through."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool.equations import in_kernel_order
from jaxpool.layers import einsum

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
