"""The order of summation in an einsum."""

from __future__ import annotations

from functools import cache
from string import ascii_lowercase


@cache
def in_kernel_order(equation: str) -> str:
    """The same equation in letters that sort as the axes of its second operand, the kernel, lie.

    `jnp.einsum` sums over axes in the order of their letters, and XLA copies what lies in another order: of
    "rtnh,nhd->rtd" the kernel and the other operand, on every call.
    """
    operands, _ = equation.split("->")
    _, kernel = operands.split(",")
    letters = dict.fromkeys(letter for letter in kernel + operands if letter.isalpha())
    return equation.translate({ord(letter): ascii_lowercase[i] for i, letter in enumerate(letters)})
