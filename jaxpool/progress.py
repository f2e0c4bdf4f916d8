"""The progress bar: texts done, texts/s and tokens/s. Off, tqdm's, or the caller's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jaxpool.runner import Stats

UseTqdm = bool | Callable[..., Any]


class Progress:
    """A bar over a run.

    Args:
        use_tqdm: False for none, True for tqdm, or anything that is called as tqdm is.
        total: number of texts, where it is known.
        stats: the engine's counters, for the tokens.
    """

    def __init__(self, use_tqdm: UseTqdm, total: int | None, stats: Stats) -> None:
        self._stats, self._tokens, self._start = stats, stats.tokens, time.perf_counter()
        self._bar: Any = None
        if use_tqdm:
            if use_tqdm is True:
                from tqdm.auto import tqdm as use_tqdm
            self._bar = use_tqdm(total=total, desc="Processed prompts", unit="text", dynamic_ncols=True)

    def update(self, texts: int) -> None:
        """Counts texts that are done."""
        if self._bar is None:
            return
        if hasattr(self._bar, "set_postfix_str"):
            rate = (self._stats.tokens - self._tokens) / (time.perf_counter() - self._start + 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(texts)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
