"""Tests against PyTorch. Where torch is not installed they are not collected."""

from __future__ import annotations

import os
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if not all(find_spec(name) for name in ("torch", "sentence_transformers")):
    collect_ignore_glob = ["test_*.py"]
