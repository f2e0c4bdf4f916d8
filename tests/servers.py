"""Servers of tiny models, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from jaxpool import LLM
from jaxpool.server.app import Settings, make_app
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving
from tests.tiny import tiny_bert, tiny_classifier, write_model

DECODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "matryoshka_dimensions": [4, 8, 16],
}
# Name -> what makes the `LLM`. All read 64 tokens at most.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "embed": {"task": "embed"},
    "chat": {"task": "embed", "convert": "embed"},  # no special tokens, a chat template, Matryoshka
    "classes": {"task": "classify"},  # three of them
    "pairs": {"task": "score"},
}


def write_models(directory: Path) -> dict[str, Path]:
    """Writes a tiny model for each of the `ARGUMENTS`."""
    return {
        "embed": tiny_bert(directory / "embed"),
        "chat": write_model(directory / "chat", "Qwen3ForCausalLM", "qwen3", **DECODER),
        "classes": tiny_classifier(directory / "classes", labels=3),
        "pairs": tiny_classifier(directory / "pairs", labels=1),
    }


def load(name: str, directory: Path) -> LLM:
    """The `LLM` of a model of `write_models`."""
    return LLM(directory, **ARGUMENTS[name], data_parallel_size=1, max_num_batched_tokens=64)


def tiny_servings(directory: Path, *names: str, limits: Limits | None = None) -> list[Serving]:
    """Tiny models under their names of `ARGUMENTS` (unsaid, all of them), each also as "also-…"."""
    written = write_models(directory)
    return [
        Serving(load(name, written[name]), (name, f"also-{name}"), limits or Limits()) for name in names or ARGUMENTS
    ]


@contextmanager
def running(servings: Sequence[Serving], settings: Settings | None = None, **config: Any) -> Iterator[str]:
    """Serves on a free port of loopback; yields the base URL, and closes the models at the end.

    Args:
        servings: loaded models.
        settings: None for the defaults, without warming up.
        config: more of `uvicorn.Config`.
    """
    app = make_app(servings, settings or Settings(warm=False))
    server = uvicorn.Server(uvicorn.Config(app, **{"port": 0, "log_level": "warning", **config}))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive(), "the server did not end"
