"""The progress bar: texts done, texts/s and tokens/s. Off, tqdm's, or the caller's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Seconds before a bar over what is mostly quick is shown.
MOMENT = 2.0

UseTqdm = bool | Callable[..., Any]


def _bar_class(use_tqdm: UseTqdm) -> Callable[..., Any]:
    if callable(use_tqdm):
        return use_tqdm
    from tqdm.auto import tqdm

    return tqdm


@contextmanager
def loading_bar(total: int) -> Iterator[Callable[[int], Any]]:
    """A bar over bytes of weights, on a terminal and if it takes longer than a moment; yields what counts them."""
    from tqdm import tqdm  # the plain one: a notebook, which is no terminal, gets none

    settings = {"unit": "B", "unit_scale": True, "desc": "Loading weights", "delay": MOMENT, "leave": False}
    with tqdm(total=total, disable=None, **settings) as bar:
        yield bar.update


class Progress:
    """A bar over a run.

    Args:
        use_tqdm: False for none, True for tqdm, or anything that is called as tqdm is.
        total: number of texts, where it is known.
    """

    def __init__(self, use_tqdm: UseTqdm, total: int | None) -> None:
        self._tokens, self._start = 0, time.perf_counter()
        self._bar: Any = None
        if use_tqdm:
            self._bar = _bar_class(use_tqdm)(total=total, desc="Processed prompts", unit="text", dynamic_ncols=True)

    def update(self, texts: int, tokens: int) -> None:
        """Counts texts that are done, and the tokens computed for them."""
        if self._bar is None:
            return
        self._tokens += tokens
        if hasattr(self._bar, "set_postfix_str"):
            rate = self._tokens / (time.perf_counter() - self._start + 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(texts)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
