"""The cells of `benchmarks.peers` as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from benchmarks.results import Cell

OURS = "jaxpool"
# No peers, and measured in the same rounds: jaxpool's own bfloat16 beside its int8, and matrix products alone.
OWN_BF16 = "jaxpool_bfloat16"
PRODUCTS = ("products_jaxpool", "products_jax", "products_torch")
YARDSTICKS = (OWN_BF16, *PRODUCTS)
# What limits a cell, by the least share of its time that its products would take alone (docs/performance.md).
LIMITS = ((0.8, "products"), (0.5, "products, then the rest"), (0.0, "the rest"))
_NAMES = {
    "sentence_transformers": "sentence-transformers",
    "onnxruntime": "ONNX Runtime",
    "vllm": "vLLM",
    "vllm_compiled": "vLLM, compiled",
}


def lines(cells: Iterable[Cell], order: dict[str, list[str]]) -> Iterator[str]:
    """Tables of speed and quality for each machine, and what was left out.

    Args:
        cells: of any machines.
        order: of the models, lengths, dtypes and engines.
    """

    def place(cell: Cell) -> tuple[Any, ...]:
        return (*_machine(cell), *(order[f"{what}s"].index(cell[what]) for what in ("model", "length", "dtype")))

    for machine, own in groupby(sorted(cells, key=place), key=_machine):
        groups = [{cell["engine"]: cell for cell in group} for _, group in groupby(list(own), key=place)]
        flat = [cell for group in groups for cell in group.values()]
        there = {cell["engine"] for cell in flat}
        peers = [engine for engine in order["engines"] if engine != OURS and engine in there]
        days = sorted({cell["date"][:10] for cell in flat})
        versions = {f"{name} {version}" for cell in flat for name, version in cell.get("versions", {}).items()}
        yield f"{' – '.join(sorted({days[0], days[-1]}))}, {machine[0]}, {machine[1]} cores ({', '.join(machine[2])});"
        yield ", ".join(sorted(versions)) + "\n"
        heads = ["model", "length", "tokens", "dtype", "texts", "**ratio**", "fastest peer", "× own bf16", OURS]
        bounds = ["products GFLOP/s", "share", "limit"]
        yield from _head([*heads, *(_NAMES.get(peer, peer) for peer in peers), *bounds])
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
    share = ours["rate"] / texts if bound and "rate" in ours else None
    return [
        *(any_cell["model"], any_cell["length"], f"{any_cell['tokens']:.0f}", any_cell["dtype"]),
        str(any_cell["texts"]),
        f"**{fastest['ratio']:.2f}**" if fastest else "–",
        _NAMES.get(fastest["engine"], fastest["engine"]) if fastest else "–",
        f"{group[OWN_BF16]['ratio']:.2f}" if "ratio" in group.get(OWN_BF16, {}) else "–",
        *(_rate(group.get(engine, {})) for engine in (OURS, *peers)),
        f"{bound:.0f} = {texts:.3g} texts/s" if bound else "–",
        "–" if share is None else f"{share:.0%}",
        _limit(share, ours),
    ]


def _limit(share: float | None, ours: Cell) -> str:
    """Of cells that say which code they are of: older ones' bound leaves out jaxpool's own products."""
    if share is None or "code" not in ours:
        return "–"
    return next(limit for least, limit in LIMITS if share >= least)


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
    return [cell for cell in group.values() if "rate" in cell and cell["engine"] not in YARDSTICKS]


def _rate(cell: Cell) -> str:
    return f"{cell['rate']:.3g}" if "rate" in cell else "–"


def _machine(cell: Cell) -> tuple[str, int, tuple[str, ...]]:
    machine = cell["machine"]
    name = ", ".join(filter(None, (machine["cpu"], machine.get("family"))))
    return name, machine["cores"], tuple(machine["flags"])


def _head(names: list[str]) -> Iterator[str]:
    yield _row(names)
    yield "|---" * len(names) + "|"


def _row(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"
