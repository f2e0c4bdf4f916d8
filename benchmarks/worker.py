"""An engine in a process of its own. Here: what runs in it, one JSON object a line in and out. See `workers.py`."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Answers until its input ends. What libraries print goes to stderr, so that stdout holds answers only."""
    engine = import_module(f"benchmarks.engines.{sys.argv[1]}")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            answer = _DO[line.split(maxsplit=1)[0]](engine, state, json.loads(line.split(maxsplit=1)[1]))
        except NotImplementedError as error:
            answer = {"skip": str(error)}
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        print(json.dumps(answer), file=answers, flush=True)


def _load(engine: Any, state: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    state["run"] = engine.load(asked["model"], asked["dtype"], asked["threads"], Path(asked["cache"]))
    return {"versions": {package: version(package) for package in engine.PACKAGES}}


def _encode(engine: Any, state: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    vectors = state["run"](asked["texts"])
    seconds = time.perf_counter() - start
    if "save" in asked:
        np.save(asked["save"], np.asarray(vectors, np.float32))
    return {"seconds": seconds}


def _measure(engine: Any, state: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    return {"rate": state["run"](asked["shapes"])}


_DO = {"load": _load, "encode": _encode, "measure": _measure}

if __name__ == "__main__":
    main()
