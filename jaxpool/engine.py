"""The engine: recipe, tokenizer and runner behind one call. Requests in, answers out as they are ready."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxpool import pipeline
from jaxpool.batch import Sequence as TokenSequence
from jaxpool.batching import Ladder
from jaxpool.chunks import merge
from jaxpool.hosts import make_schedule
from jaxpool.placement import give_back_freed, keeps_stacks, load_to_mesh, packed, shared, stored_bytes
from jaxpool.program import IMAGE, make_programs, with_images
from jaxpool.progress import Progress, UseTqdm, loading_bar
from jaxpool.prompts import Shown
from jaxpool.reading import Reader, Reading, Request
from jaxpool.recipe import Recipe
from jaxpool.runner import Replica, Runner, Stats
from jaxpool.tasks import PER_TOKEN
from jaxpool.tokens import Tokenizer

Answer = tuple[TokenSequence, np.ndarray]

# Seconds that an engine's end waits for a batch that hangs because another process is gone.
LAST_WORDS = 10.0
# A picture in a window takes the place of so many texts.
PICTURE_WEIGHT = 16


class Engine:
    """Computes streams of requests on a list of replicas. Safe to use from several threads.

    Args:
        recipe: what to compute.
        tokenizer: the model's.
        meshes: one replica each.
        ladder: the shapes.
        dtype: to compute in.
        fsdp: whether the data axis shares out the parameters too.
        tower: the shapes for pictures, of a family that sees.
        by_sequence: whether norms and residuals are split along the sequence over the model axis.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        meshes: list[Mesh],
        ladder: Ladder,
        dtype: Any,
        *,
        tower: Ladder | None = None,
        fsdp: bool = False,
        by_sequence: bool = False,
    ) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.meshes = meshes
        self.stats = Stats()
        programs = make_programs(recipe, dtype)
        how = {"fsdp": fsdp, "stacked": keeps_stacks(recipe, meshes[0])}
        self.schedule = make_schedule(
            meshes[0],
            {
                "model": recipe.describe(),
                "dtype": str(dtype),
                "mesh": dict(meshes[0].shape),
                "batch shapes": [[shape.rows, shape.tokens] for shape in ladder.shapes],
                "fsdp": fsdp,
                "sequence parallel": by_sequence,
            },
        )
        with loading_bar(stored_bytes(recipe, dtype)) as progress:
            params = packed(load_to_mesh(recipe, meshes[0], dtype, progress=progress, **how), recipe, meshes[0])
        owned = [params, *(shared(params, mesh) for mesh in meshes[1:])]
        replicas = [
            Replica(mesh, own, programs, self.stats, by_sequence=by_sequence)
            for mesh, own in zip(meshes, owned, strict=True)
        ]
        give_back_freed()
        patience = LAST_WORDS if self.schedule.binding else None
        own_rows = replicas[0].rows.of_own
        ladders = {} if tower is None else {IMAGE: tower.with_rows(own_rows)}
        self.runner = Runner(replicas, ladder.with_rows(own_rows), self.stats, ladders=ladders, patience=patience)
        self._reader = Reader(recipe, tokenizer)
        self._tokenising = ThreadPoolExecutor(2, thread_name_prefix="jaxpool-tokenise")
        self._requests = 0
        self._lock = threading.Lock()

    @property
    def ladder(self) -> Ladder:
        """The shapes, with the rows of all processes."""
        return self.runner.ladder.with_rows(self.runner.replicas[0].rows.of_all)

    def reserve(self, count: int) -> int:
        """Numbers for so many requests; the first of them."""
        with self._lock:
            self._requests += count
            return self._requests - count

    def run(
        self, task: str, requests: Iterable[Request], reading: Reading, use_tqdm: UseTqdm, total: int | None
    ) -> Iterator[Answer]:
        """Answers requests, in no fixed order.

        Args:
            task: one of the recipe's.
            requests: drawn from in the caller's thread, a few thousand ahead, and more while one takes long.
            reading: how their texts are read.
            use_tqdm: a progress bar, none, or something to call instead of tqdm.
            total: how many requests there are, if that is known.

        Yields:
            (sequence, float32 [C]), or [T, C] for a task that answers for every token, cut to the entries that the
            request keeps; `sequence.owners` are the requests' numbers.

        Raises:
            ValueError: as `Reader.read`.
            RuntimeError: the engine is closed.
            HostError: where several processes work together: another one failed.
        """
        self.runner.check_open()
        work = ((start, window, reading) for start, window in pipeline.windows(requests, weight=_weight))
        progress = Progress(use_tqdm, total)
        try:
            with (
                self.schedule.run(task),
                closing(pipeline.ahead(self._tokenising, self._read, work)) as tokenised,
                closing(pipeline.execute(tokenised, self.runner, task, self.schedule, total)) as computed,
            ):
                answers: Iterator[Answer] = computed
                if reading.in_parts:
                    answers = merge(answers, normalised=self.recipe.truncate_dim is None)
                for sequence, rows in answers:
                    yield sequence, self.wanted(task, sequence, rows)
                    progress.update(len(sequence.owners), len(sequence.ids))
        except CancelledError:
            raise RuntimeError("this LLM was closed while it worked on this call") from None
        finally:
            progress.close()

    def in_order(
        self, task: str, requests: Iterable[Request], reading: Reading, use_tqdm: UseTqdm
    ) -> Iterator[np.ndarray]:
        """As `run`, but in the order of the requests, one array each."""
        waiting: dict[int, np.ndarray] = {}
        following = 0
        for sequence, rows in self.run(task, requests, reading, use_tqdm, None):
            waiting |= {owner: rows.copy() for owner in sequence.owners}
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def read(self, requests: list[Request], reading: Reading) -> list[TokenSequence]:
        """One window of requests, tokenised in the caller's thread. Errors as `Reader.read`."""
        sequences = self._reader.read(0, requests, reading)
        self.stats.add(truncated=sum(s.truncated * len(s.owners) for s in sequences))
        return sequences

    def warmup(self, tasks: list[str]) -> None:
        """Compiles and runs every shape of what these tasks take. Errors as `Runner.warmup`."""
        programs = [name for task in tasks for name in (task, IMAGE, with_images(task))]
        self.runner.warmup([name for name in dict.fromkeys(programs) if name in self.runner.replicas[0].programs])

    def _read(self, start: int, window: list[Request], reading: Reading) -> list[TokenSequence]:
        """A window's texts and pictures; the tower looks at those that stand in a text."""
        sequences = self._reader.read(start, window, reading)
        if self.schedule.binding and any(sequence.pictures or sequence.arrays for sequence in sequences):
            raise ValueError("pictures are not supported by a model over several processes (docs/hosts.md)")
        return pipeline.look(self.runner, sequences, self.recipe)

    def wanted(self, task: str, sequence: TokenSequence, rows: np.ndarray) -> np.ndarray:
        """Of a sequence's rows, those and that much of them that the request keeps."""
        if task in PER_TOKEN and sequence.step_tag_id is not None:
            rows = rows[sequence.ids == sequence.step_tag_id]
        return rows[..., : sequence.dimensions]

    def close(self) -> None:
        """Ends the engine's threads. Idempotent."""
        self._tokenising.shutdown(wait=False, cancel_futures=True)
        self._reader.close()
        self.runner.close()


def _weight(request: Request) -> int:
    """What a request counts in a window: pictures are large."""
    prompt, _ = request
    return PICTURE_WEIGHT * len(prompt.pictures) if isinstance(prompt, Shown) else 1
