"""Cells kept in a JSON file: written whole after each, so that a run can be stopped anywhere and taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


class Results:
    """The cells of a file, one for each machine, model, length, dtype and engine.

    Args:
        file: where they are kept.
        keep_old: whether a cell of other code than now is as good as one of this.
    """

    def __init__(self, file: Path, keep_old: bool = False) -> None:
        self.file, self.keep_old = file, keep_old
        stored = json.loads(file.read_text()) if file.exists() else []
        self._cells = {_key(cell): cell for cell in stored}

    def __iter__(self):
        return iter(self._cells.values())

    def done(self, cell: Cell) -> bool:
        """Whether the cell is there, of the same code, and not for an error. What says no code is older."""
        stored = self._cells.get(_key(cell), {})
        return _stands(stored) and (self.keep_old or stored.get("code") == cell["code"])

    def put(self, cell: Cell) -> None:
        """Takes a cell, in the place of an older one, and writes the file; an error replaces no figure of any code."""
        if "error" in cell and _stands(self._cells.get(_key(cell), {})):
            return
        self._cells[_key(cell)] = cell
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(list(self), indent=1) + "\n")
        part.replace(self.file)


def _stands(cell: Cell) -> bool:
    return bool(cell) and "error" not in cell


def _key(cell: Cell) -> tuple[str, ...]:
    machine = cell["machine"]
    # One name may stand for several kinds of CPU; cells of before 2026-11-30 do not say the family.
    kind = " ".join([machine.get("family", ""), *machine["flags"]])
    return (machine["cpu"], kind, str(machine["cores"]), cell["model"], cell["length"], cell["dtype"], cell["engine"])
