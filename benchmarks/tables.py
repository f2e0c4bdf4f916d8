"""The cells of `benchmarks.peers` as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from benchmarks.results import Cell

OURS = "jaxpool"
PRODUCTS = ("products_jax", "products_torch")
_NAMES = {"sentence_transformers": "sentence-transformers", "onnxruntime": "ONNX Runtime", "vllm": "vLLM"}


def lines(cells: Iterable[Cell], order: dict[str, list[str]]) -> Iterator[str]:
    """Tables of speed and quality for each machine, and what was left out.

    Args:
        cells: of any machines.
        order: of the models, lengths, dtypes and engines.
    """

    def place(cell: Cell) -> tuple[Any, ...]:
        return (*_machine(cell), *(order[f"{what}s"].index(cell[what]) for what in ("model", "length", "dtype")))

    peers = [engine for engine in order["engines"] if engine != OURS]
    for machine, own in groupby(sorted(cells, key=place), key=_machine):
        groups = [{cell["engine"]: cell for cell in group} for _, group in groupby(list(own), key=place)]
        flat = [cell for group in groups for cell in group.values()]
        days = sorted({cell["date"][:10] for cell in flat})
        versions = {f"{name} {version}" for cell in flat for name, version in cell.get("versions", {}).items()}
        yield f"{' – '.join(sorted({days[0], days[-1]}))}, {machine[0]}, {machine[1]} cores ({', '.join(machine[2])});"
        yield ", ".join(sorted(versions)) + "\n"
        heads = ["model", "length", "tokens", "dtype", "texts", "**ratio**", "fastest peer", "jaxpool"]
        yield from _head([*heads, *(_NAMES.get(peer, peer) for peer in peers), "products GFLOP/s", "share"])
        yield from (_row(_speed(group, peers)) for group in groups if _measured(group))
        yield ""
        yield from _head(["model", "length", "dtype", "texts", OURS, *(_NAMES.get(peer, peer) for peer in peers)])
        yield from (_row(_quality(group, [OURS, *peers])) for group in groups if _measured(group))
        yield ""
        for cell in flat:
            if text := cell.get("error") or cell.get("left_out") or cell.get("note"):
                yield f"- {cell['model']}, {cell['length']}, {cell['dtype']}, {cell['engine']}: {text}"


def _speed(group: dict[str, Cell], peers: list[str]) -> list[str]:
    measured = _measured(group)
    any_cell = measured[-1]
    ours = group.get(OURS, {})
    rivals = [cell for cell in measured if cell["engine"] in peers and "ratio" in cell]
    fastest = max(rivals, key=lambda cell: cell["rate"], default=None)
    bound = max((group[name].get("rate", 0.0) for name in PRODUCTS if name in group), default=0.0)
    texts = bound * 1e9 / any_cell["flops"]
    return [
        *(any_cell["model"], any_cell["length"], f"{any_cell['tokens']:.0f}", any_cell["dtype"]),
        str(any_cell["texts"]),
        f"**{fastest['ratio']:.2f}**" if fastest else "–",
        _NAMES.get(fastest["engine"], fastest["engine"]) if fastest else "–",
        *(_rate(group.get(engine, {})) for engine in (OURS, *peers)),
        f"{bound:.0f} = {texts:.3g} texts/s" if bound else "–",
        f"{ours['rate'] / texts:.0%}" if bound and "rate" in ours else "–",
    ]


def _quality(group: dict[str, Cell], engines: list[str]) -> list[str]:
    any_cell = _measured(group)[-1]
    texts = max(cell.get("quality", {}).get("texts", 0) for cell in _measured(group))
    return [
        *(any_cell["model"], any_cell["length"], any_cell["dtype"], str(texts)),
        *(_nearness(group.get(engine, {}).get("quality")) for engine in engines),
    ]


def _nearness(quality: dict[str, float] | None) -> str:
    if not quality:
        return "–"
    return f"max Δ {quality['max_delta']:.1e}" if "max_delta" in quality else f"cos ≥ {quality['lowest_cosine']:.5f}"


def _measured(group: dict[str, Cell]) -> list[Cell]:
    return [cell for cell in group.values() if "rate" in cell and cell["engine"] not in PRODUCTS]


def _rate(cell: Cell) -> str:
    return f"{cell['rate']:.3g}" if "rate" in cell else "–"


def _machine(cell: Cell) -> tuple[str, int, tuple[str, ...]]:
    machine = cell["machine"]
    return machine["cpu"], machine["cores"], tuple(machine["flags"])


def _head(names: list[str]) -> Iterator[str]:
    yield _row(names)
    yield "|---" * len(names) + "|"


def _row(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"
