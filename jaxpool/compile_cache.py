"""The optional cache of compiled programs on disk: asked for by the user, never set at import."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

from jaxpool.log import logger


def use_compile_cache(choice: bool | str | os.PathLike[str]) -> None:
    """Keeps compiled programs under `choice` (True: ~/.cache/jaxpool), in a folder of this jaxlib's own.

    The setting is JAX's, so it holds for the whole process: another directory takes the place of the one before, with a
    warning. A cache left by another jaxlib can crash, hence the folder a version.
    """
    if choice is False:
        return
    root = Path("~/.cache/jaxpool").expanduser() if choice is True else Path(choice).expanduser()
    directory = str(root / f"jaxlib-{jaxlib.__version__}")
    before = getattr(jax.config, "jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if directory == before:
        return
    if before:
        logger.warning("compile_cache: a process has one; from now on it is %s, and no more %s", directory, before)
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()  # JAX opened one, or decided on none, when it first compiled
