"""Real text that any machine has: the docstrings of the Python standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path


def docstrings(limit: int | None = None) -> list[str]:
    """Every distinct docstring of the standard library, in the order of the files' names; `limit` spreads evenly."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "lib2to3" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and text.strip():
                    found[text] = None
    texts = list(found)
    return texts if limit is None or limit >= len(texts) else [texts[i * len(texts) // limit] for i in range(limit)]
