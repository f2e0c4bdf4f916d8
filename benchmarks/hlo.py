"""What a compiled program's text shows: collectives, copies of weights, squares of the row's length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
# name = dtype[2,3]{layout} operation( …, or a tuple of such for the asynchronous ones.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][\w-]*)\(", re.MULTILINE)
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")

Shape = tuple[int, ...]


def instructions(text: str) -> Iterator[tuple[str, list[Shape]]]:
    """(operation, shapes of its results) of every instruction, those inside fusions and loops included."""
    for types, operation in _INSTRUCTION.findall(text):
        yield operation, [tuple(int(n) for n in dims.split(",") if n) for _, dims in _SHAPE.findall(types)]


def collectives(text: str) -> dict[str, int]:
    """How often each collective stands in the program (a loop's body once)."""
    found = Counter(operation.removesuffix("-start") for operation, _ in instructions(text))
    return {name: found[name] for name in COLLECTIVES if found[name]}


def copies(text: str, weights: Collection[Shape]) -> list[Shape]:
    """Results of copies, transposes and conversions that have as many dimensions and sizes as one of `weights`."""
    wanted = {tuple(sorted(n for n in shape if n > 1)) for shape in weights}
    moves = ("copy", "copy-start", "transpose", "convert")
    found = (shapes[0] for operation, shapes in instructions(text) if operation in moves and shapes)
    return [shape for shape in found if tuple(sorted(n for n in shape if n > 1)) in wanted]


def squares(text: str, tokens: int) -> set[Shape]:
    """Shapes with the row's length twice: scores or masks that were written out."""
    return {shape for _, shapes in instructions(text) for shape in shapes if shape.count(tokens) > 1}
