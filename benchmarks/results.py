"""Cells kept in a JSON file: written whole after each, so that a run can be stopped anywhere and taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


class Results:
    """The cells of a file, one for each machine, model, length, dtype and engine."""

    def __init__(self, file: Path) -> None:
        self.file = file
        stored = json.loads(file.read_text()) if file.exists() else []
        self._cells = {_key(cell): cell for cell in stored}

    def __iter__(self):
        return iter(self._cells.values())

    def done(self, cell: Cell) -> bool:
        """Whether the cell is there, and not for an error."""
        return "error" not in self._cells.get(_key(cell), {"error": "not there"})

    def put(self, cell: Cell) -> None:
        """Takes a cell, in the place of an older one, and writes the file; an error replaces no figure."""
        if "error" in cell and self.done(cell):
            return
        self._cells[_key(cell)] = cell
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(list(self), indent=1) + "\n")
        part.replace(self.file)


def _key(cell: Cell) -> tuple[str, ...]:
    machine = cell["machine"]
    unit = " ".join(machine["flags"])  # one name may stand for several kinds of CPU
    return (machine["cpu"], unit, str(machine["cores"]), cell["model"], cell["length"], cell["dtype"], cell["engine"])
