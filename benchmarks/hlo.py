"""What a compiled program's text shows: collectives, copies of weights, squares of the row's length, bytes moved."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
# name = dtype[2,3]{layout} operation( …, or a tuple of such for the asynchronous ones.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][\w-]*)\(", re.MULTILINE)
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")

# Name, types of the results, operation, operands, and the rest of the line.
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*?)\)(.*)$", re.MULTILINE)
# What moves nothing.
_FREE = {"parameter", "bitcast", "get-tuple-element", "tuple", "constant"}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}

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


def traffic(text: str) -> dict[str, int]:
    """Bytes that a GPU's program reads and writes: of its products, of its kernels (Pallas'), and of the rest.

    A library's workspace (bytes without a meaning) is left out. Of what a gather reads only as much counts as it gives.
    """
    sizes: dict[str, int] = {}
    moved = {"products": 0, "kernels": 0, "rest": 0}
    for name, types, operation, operands, rest in _LINE.findall(text[text.index("\nENTRY ") :]):
        product = "gemm_fusion" in name or "cublas" in rest
        sizes[name] = _size(types, product)
        if operation in _FREE:
            continue
        read = [sizes.get(word.lstrip("%"), 0) for word in re.findall(r"%[\w.-]+", operands)]
        if "gather" in name:
            read = [min(size, sizes[name]) for size in read]
        kind = "products" if product else "kernels" if "__gpu$xla.gpu.triton" in rest else "rest"
        moved[kind] += sum(read) + sizes[name]
    return moved


def _size(types: str, product: bool) -> int:
    shapes = [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in _SHAPE.findall(types)]
    return sum(_BYTES.get(kind, 0) * math.prod(dims) for kind, dims in shapes if not (product and kind == "s8"))
