"""The record of `benchmarks.gpu` as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

from benchmarks.results import Cell
from benchmarks.tables import OURS

MISSING = "–"
# What is said of every engine, after the ratios: the columns' heads, and a cell's text.
FIGURES: Mapping[str, Callable[[Cell], str]] = {
    "{} texts/s": lambda cell: f"{cell['rate']:.4g}",
    "{} MFU": lambda cell: f"{cell['mfu']:.1%}",
    "{} cos ≥": lambda cell: f"{cell['quality']['lowest_cosine']:.5f}",
}


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What it was taken on, one table, and what was left out."""
    facts = [
        record["date"][:10],
        record["device"],
        *(f"driver {record[key]}" for key in ("driver_version",) if key in record),
    ]
    yield ", ".join([*facts, *(f"{name} {version}" for name, version in sorted(record["versions"].items()))]) + "\n"
    cells: list[Cell] = record["cells"]
    engines = list(dict.fromkeys(cell["engine"] for cell in cells))
    peers = [engine for engine in engines if engine != OURS]
    figures = {head: text for head, text in FIGURES.items() if any(_text(cell, text) != MISSING for cell in cells)}
    heads = ["model", "tokens", "texts a round", *(f"**{OURS} / {peer}**" for peer in peers)]
    heads += [head.format(engine) for head in figures for engine in engines]
    yield from ("| " + " | ".join(heads) + " |", "|---" * len(heads) + "|")
    for (model, length), group in groupby(cells, key=lambda cell: (cell["model"], cell["length"])):
        by_engine = {cell["engine"]: cell for cell in group}
        row = [model, length, _first(by_engine, lambda cell: f"{cell['texts']:,}")]
        row += [_text(by_engine.get(peer, {}), lambda cell: f"**{cell['ratio']:.2f}**") for peer in peers]
        row += [_text(by_engine.get(engine, {}), text) for text in figures.values() for engine in engines]
        yield "| " + " | ".join(row) + " |"
    yield ""
    peaks = sorted({f"{cell['peak'] / 1e12:.4g} TFLOP/s in {cell['dtype']}" for cell in cells if "peak" in cell})
    yield f"- MFU is of {', '.join(peaks)}" if peaks else f"- no MFU: the peak of {record['device']} is not known here"
    yield from (f"- {note}" for note in record["notes"])
    for cell in cells:
        if text := cell.get("error") or cell.get("note"):
            yield f"- {cell['model']}, {cell['length']}, {cell['engine']}: {text}"


def _first(cells: Mapping[str, Cell], text: Callable[[Cell], str]) -> str:
    return next((found for cell in cells.values() if (found := _text(cell, text)) != MISSING), MISSING)


def _text(cell: Cell, text: Callable[[Cell], str]) -> str:
    try:
        return text(cell)
    except KeyError:  # not measured
        return MISSING
