"""What a compiled program's text shows: collectives, copies of weights, squares of the row's length, bytes moved."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
# name = dtype[2,3]{layout} operation( …, or a tuple of such for the asynchronous ones.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][\w-]*)\(", re.MULTILINE)
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")

# name = types of the results, operation(operands), and the rest of the line; a computation's heading, and what a fusion
# calls.
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*?)\)(.*)$", re.MULTILINE)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$\n((?:.*\n)*?)^\}", re.MULTILINE)
_CALLS = re.compile(r"calls=%?([\w.-]+)")
# What moves nothing, and what reads as much of its first operand as it gives.
_FREE = {"parameter", "bitcast", "get-tuple-element", "tuple", "constant"}
_PARTS = {"slice", "dynamic-slice", "gather"}
# What has programs of its own inside.
_OPAQUE = {"while", "call", "conditional"}
# What is the same numbers still.
_SAME = {"bitcast", "reshape", "convert", "copy", "transpose"}
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "token": 0,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "f64": 8,
    "u64": 8,
}

Shape = tuple[int, ...]


def instructions(text: str) -> Iterator[tuple[str, list[Shape]]]:
    """(operation, shapes of its results) of every instruction, those inside fusions and loops included."""
    for types, operation in _INSTRUCTION.findall(text):
        yield operation, [tuple(int(n) for n in dims.split(",") if n) for _, dims in _SHAPE.findall(types)]


def collectives(text: str) -> dict[str, int]:
    """How often each collective stands in the program (a loop's body once)."""
    found = Counter(operation.removesuffix("-start") for operation, _ in instructions(text))
    return {name: found[name] for name in COLLECTIVES if found[name]}


def copies(text: str, stacks: Collection[Shape]) -> list[Shape]:
    """Results of copies, transposes and conversions with the sizes of one of `stacks`, or of a layer's parameter.

    Activations may have a layer's sizes, too. A layer's "copy-start" only fetches it ahead, into vector memory.
    """
    wanted, layers = ({_sizes(shape) for shape in shapes} for shapes in (stacks, [shape[1:] for shape in stacks]))
    moves = ("copy", "copy-start", "transpose", "convert")
    moved = [shapes[0] for operation, shapes in instructions(text) if operation in moves and shapes]
    parameters = [tuple(map(int, sizes.split(","))) for sizes in _MOVED_PARAMETER.findall(text)]
    return [x for x in moved if _sizes(x) in wanted] + [x for x in parameters if _sizes(x) in layers - wanted]


_MOVED_PARAMETER = re.compile(r" = \w+\[([\d,]+)\]\S* (?:copy|transpose|convert)\(.*op_name=\"params\[")


def _sizes(shape: Shape) -> Shape:
    return tuple(sorted(n for n in shape if n > 1))


def squares(text: str, tokens: int) -> set[Shape]:
    """Shapes with the row's length twice: scores or masks that were written out."""
    return {shape for _, shapes in instructions(text) for shape in shapes if shape.count(tokens) > 1}


def traffic(text: str) -> dict[str, int]:
    """Bytes that a GPU's program reads and writes: of its products, of its kernels (Pallas'), and of the rest.

    A library's workspace (bytes without a meaning) is left out.

    Raises:
        ValueError: the program has loops or branches, of which one cannot say how often they run.
    """
    computations = dict(_COMPUTATION.findall(text))
    sizes: dict[str, int] = {}
    moved = {"products": 0, "kernels": 0, "rest": 0}
    for name, types, operation, operands, rest in _LINE.findall(text[text.index("\nENTRY ") :]):
        product = "gemm_fusion" in name or "cublas" in rest
        sizes[name] = _size(types, workspace=product)
        if operation in _OPAQUE:
            raise ValueError(f"{name}: a {operation}, which moves what nobody can tell")
        if operation in _FREE or operation.endswith("-start"):  # an asynchronous one counts where it is done
            continue
        read = [sizes.get(operand, 0) for operand in _names(operands)]
        if called := _CALLS.search(rest):
            read = [min(pair) for pair in zip(read, _read(computations[called[1]], read), strict=True)]
        kind = "products" if product else "kernels" if "__gpu$xla.gpu.triton" in rest else "rest"
        moved[kind] += sum(read) + sizes[name]
    return moved


def _read(body: str, whole: Sequence[int]) -> list[int]:
    """How many bytes of each parameter a fusion reads: of one that is only taken parts of, as much as they have."""
    lines = _LINE.findall(body)
    numbers = {name: int(operands) for name, _, operation, operands, _ in lines if operation == "parameter"}
    parts, all_of = Counter[int](), set[int]()
    for name, types, operation, operands, _ in lines:
        for place, operand in enumerate(_names(operands)):
            if (number := numbers.get(operand)) is None:
                continue
            if operation in _SAME:
                numbers[name] = number
            elif operation in _PARTS and place == 0:
                parts[number] += _size(types)
            else:
                all_of.add(number)
    return [size if number in all_of else parts[number] for number, size in enumerate(whole)]


def _names(operands: str) -> list[str]:
    return [word.lstrip("%") for word in re.findall(r"%[\w.-]+", operands)]


def _size(types: str, *, workspace: bool = False) -> int:
    shapes = [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in _SHAPE.findall(types)]
    return sum(_BYTES[kind] * math.prod(dims) for kind, dims in shapes if not (workspace and kind == "s8"))
