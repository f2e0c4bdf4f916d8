"""How a job is getting on: a bar on a terminal, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpool.runner import Stats

# Seconds between two "progress" lines.
INTERVAL = 5.0


class Report:
    """Counts rows as they are done and says so.

    Args:
        stats: the engine's counters.
        total: rows of the whole job.
        done: rows that earlier runs did.
        bar: whether to show a bar on a terminal.
        log: where JSON lines go; None: nowhere.
    """

    def __init__(
        self, stats: Stats, total: int, *, done: int = 0, bar: bool = False, log: IO[str] | None = None
    ) -> None:
        self._stats, self._total, self._before, self._log = stats, total, done, log
        self._start = self._said = time.perf_counter()
        self._tokens, self._computed, self._truncated = stats.tokens, stats.computed_tokens, stats.truncated
        self.rows = 0
        self._bar: Any = None
        if bar:
            from tqdm.auto import tqdm

            # disable=None: no bar where stderr is no terminal.
            shown = tqdm(total=total, initial=done, unit="row", desc="Embedding", dynamic_ncols=True, disable=None)
            self._bar = None if shown.disable else shown

    @property
    def seconds(self) -> float:
        """Since this run began to embed."""
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        """Rows a second in this run."""
        return self.rows / max(self.seconds, 1e-9)

    @property
    def tokens(self) -> int:
        """Tokens computed in this run."""
        return self._stats.tokens - self._tokens

    @property
    def truncated(self) -> int:
        """Texts cut in this run."""
        return self._stats.truncated - self._truncated

    @property
    def padding_share(self) -> float:
        """Share of this run's computed tokens that were padding."""
        computed = self._stats.computed_tokens - self._computed
        return 1 - self.tokens / computed if computed else 0.0

    def add(self, rows: int) -> None:
        """Counts rows that are done."""
        self.rows += rows
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s, {self.padding_share:.1%} padding",
                refresh=False,
            )
            self._bar.update(rows)
        if self._log is not None and time.perf_counter() - self._said >= INTERVAL:
            self.say("progress")

    def say(self, event: str, **more: Any) -> None:
        """Writes a JSON line: the event, where the job stands, and `more`."""
        if self._log is None:
            return
        self._said = time.perf_counter()
        done = self._before + self.rows
        values = {
            "rows": done,
            "rows_total": self._total,
            "seconds": round(self.seconds, 3),
            "texts_per_second": round(self.rate, 2),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "padding_share": round(self.padding_share, 4),
            "seconds_left": round((self._total - done) / self.rate, 1) if self.rows else None,
        }
        say(self._log, event, **values | more)

    def line(self) -> str:
        """What this run did, for people."""
        return (
            f"{self.rows:,} texts, {self.tokens:,} tokens, {self.truncated:,} truncated, "
            f"{self.padding_share:.1%} padding, {self.seconds:.2f} s, {self.rate:,.1f} texts/s"
        )

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def say(log: IO[str] | None, event: str, **values: Any) -> None:
    """Writes one JSON line, if there is where to."""
    if log is not None:
        print(json.dumps({"event": event, **values}, ensure_ascii=False), file=log, flush=True)


@contextmanager
def open_log(name: str | None) -> Iterator[IO[str] | None]:
    """Where JSON lines go: a file, appended to; "-" for stderr; None for nowhere."""
    if name is None or name == "-":
        yield sys.stderr if name else None
        return
    with open(name, "a", encoding="utf-8") as file:  # noqa: PTH123 (as the user wrote it, /dev/fd/3 too)
        yield file
