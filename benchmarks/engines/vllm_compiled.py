"""vLLM on CPU as it is by default, its model compiled by torch."""

from __future__ import annotations

from functools import partial

from benchmarks.engines import vllm

PACKAGES = vllm.PACKAGES
load = partial(vllm.load, eager=False)
