"""Tests against PyTorch. Where torch is not installed they are not collected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import jax
import pytest

from jaxpool.compile_cache import use_compile_cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if not all(find_spec(name) for name in ("torch", "sentence_transformers")):
    collect_ignore_glob = ["test_*.py"]

_CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(scope="module")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs compiled once for all tests of a file: many differ in their weights alone."""
    before = {name: getattr(jax.config, name) for name in _CACHE_SETTINGS}
    use_compile_cache(tmp_path_factory.mktemp("programs"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
