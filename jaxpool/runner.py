"""The engine: programs compiled once a shape, replicas that take batches as they fall free, counters."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpool.batch import OPTIONS, Arrays, Inputs
from jaxpool.batch import Sequence as TokenSequence
from jaxpool.batching import Ladder, Plan, Shape
from jaxpool.hosts.rows import Rows
from jaxpool.log import logger, once
from jaxpool.params import Tree
from jaxpool.sharding import split_sequences

# Batches in flight on one replica: on a chip the next is dispatched before the last is copied back. A CPU has no
# copy to hide, and a second batch would be better off on another core.
_IN_FLIGHT = {"cpu": 1}
_IN_FLIGHT_ON_CHIPS = 2
# What XLA is told where its own choices move more memory than the program says (docs/gpu.md): keeping float32 where
# values are rounded to bfloat16, and one product for queries, keys and values, whose biases it adds apart then.
COMPILER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "gpu": {"xla_allow_excess_precision": False, "xla_gpu_dot_merger_threshold_mb": 0},
}


@dataclass(frozen=True, eq=False)
class Program:
    """What is compiled, once a shape.

    Attributes:
        compute: (params, inputs) -> array; pure.
        arrays: what it takes of every token beside its id.
        per_token: whether it answers for every token, or every few.
    """

    compute: Callable[[Tree, Inputs], jax.Array]
    arrays: Arrays = field(default_factory=dict)
    per_token: bool = False

    def __call__(self, params: Tree, inputs: Inputs) -> jax.Array:
        """`compute`."""
        return self.compute(params, inputs)

    def inputs(self, rows: int, shape: Shape, array: Callable[..., Any]) -> Inputs:
        """Its inputs of a shape, `rows` of it, every field made by `array` (`Inputs.of_shape`)."""
        return Inputs.of_shape(rows, shape.tokens, shape.places, array, self.arrays)


@dataclass
class Stats:
    """What an engine has done since it started.

    Attributes:
        texts: sequences computed (a text that came twice in one window counts once).
        tokens: their tokens.
        computed_tokens: tokens of the batches' shapes, padding included.
        batches: programs run.
        compilations: programs compiled. For tasks that `LLM.warmup` has seen this stands still.
        truncated: texts cut to the limit.
        device_seconds: that batches were on their devices, without waiting for one another, over all replicas.
    """

    texts: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    batches: int = 0
    compilations: int = 0
    truncated: int = 0
    device_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding."""
        return 1 - self.tokens / self.computed_tokens if self.computed_tokens else 0.0

    def add(self, **counts: float) -> None:
        """Adds to the counters."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


def _compiled(lowered: jax.stages.Lowered, options: Mapping[str, Any]) -> jax.stages.Compiled:
    """The executable. Options that a later XLA has dropped are no reason not to start: it goes without all of them."""
    try:
        return lowered.compile(dict(options))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        once(f"compiled without {sorted(options)}, which this XLA does not know all of: slower on this platform")
        return lowered.compile()


class Replica:
    """One sub-mesh with its own executables.

    Args:
        mesh: its devices.
        params: the parameters, on the mesh.
        programs: by task, what to compile.
        stats: where to count.
        by_sequence: whether norms and residuals are split along the sequence.
    """

    def __init__(
        self, mesh: Mesh, params: Tree, programs: Mapping[str, Program], stats: Stats, *, by_sequence: bool = False
    ) -> None:
        self.mesh = mesh
        self._by_sequence = by_sequence
        self.in_flight = _IN_FLIGHT.get(mesh.devices.flat[0].platform, _IN_FLIGHT_ON_CHIPS)
        self._params = params
        self.rows = Rows(mesh)
        sharding = self.rows.sharding
        self.programs = programs
        self._jitted = {task: jax.jit(program.compute, out_shardings=sharding) for task, program in programs.items()}
        self._executables: dict[tuple[str, Shape], Future[Callable[..., jax.Array]]] = {}
        self._stats = stats
        self._lock = threading.Lock()

    def compile(self, task: str, shape: Shape) -> Callable[..., jax.Array]:
        """The executable for a task and a shape, compiled ahead of time on first use; others wait for it."""
        with self._lock:
            executable = self._executables.get((task, shape))
            own = executable is None
            if executable is None:
                executable = self._executables[task, shape] = Future()
        if own:
            try:
                executable.set_result(self._compile(task, shape))
            except BaseException as error:
                with self._lock:  # the next one tries again
                    del self._executables[task, shape]
                executable.set_exception(error)
        return executable.result()

    def _compile(self, task: str, shape: Shape) -> Callable[..., jax.Array]:
        abstract = partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=self.rows.sharding)
        inputs = self.programs[task].inputs(self.rows.of_all(shape.rows), shape, abstract)
        with jax.set_mesh(self.mesh), split_sequences(self._by_sequence):
            lowered = self._jitted[task].lower(self._params, inputs)
            compiled = _compiled(lowered, COMPILER_OPTIONS.get(self.mesh.devices.flat[0].platform, {}))
        self._stats.add(compilations=1)
        return compiled

    def has(self, task: str, shape: Shape) -> bool:
        """Whether a shape is compiled for a task, or about to be."""
        return (task, shape) in self._executables

    def has_compiled(self, task: str, shape: Shape) -> bool:
        """Whether a shape is compiled for a task."""
        executable = self._executables.get((task, shape))
        return executable is not None and executable.done()

    def dispatch(self, task: str, shape: Shape, inputs: Inputs) -> jax.Array:
        """Starts one batch; the copy to the host starts as soon as it is computed."""
        output = self.compile(task, shape)(self._params, self.rows.upload(inputs))
        output.copy_to_host_async()
        return output

    def download(self, output: jax.Array) -> np.ndarray:
        """Waits for what `dispatch` started: the rows that are this process's, all where there is one."""
        return self.rows.download(output)


class Batch(Future[np.ndarray]):
    """What becomes of a batch.

    Attributes:
        begun: `time.monotonic()` since when nothing but this batch keeps its replica: not while it waits for the one
            before. None until then.
        seconds: that the device had it, without waiting for the one before and without compiling; 0 until it is there.
    """

    begun: float | None = None
    seconds = 0.0


@dataclass
class _Work:
    task: str
    shape: Shape
    inputs: Inputs
    future: Batch


class _WorkQueue:
    """Batches waiting for a replica. Once closed it takes no more, and what still waits is cancelled."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.closed = False

    def put(self, item: _Work) -> None:
        with self._lock:
            if self.closed:
                raise RuntimeError("this LLM is closed")
            self._items.put(item)

    def get(self, block: bool) -> _Work | None:
        """The next batch, or None once closed. Raises `queue.Empty` if there is none and `block` is false."""
        return self._items.get(block=block)

    def close(self, readers: int) -> None:
        with self._lock:
            self.closed = True
            with suppress(queue.Empty):
                while item := self._items.get_nowait():
                    item.future.cancel()
            for _ in range(readers):
                self._items.put(None)


def _serve(replica: Replica, work: _WorkQueue, stats: Stats) -> None:
    """A replica's thread: dispatches the next batch before it waits for the last."""
    running: deque[tuple[_Work, jax.Array, float]] = deque()
    free = 0.0  # when the device had finished the last batch

    def finish() -> None:
        nonlocal free
        item, output, started = running.popleft()
        item.future.begun = time.monotonic()
        try:
            rows = replica.download(output)
            begun, free = max(started, free), time.monotonic()
            item.future.seconds = free - begun
            stats.add(device_seconds=free - begun)
            item.future.set_result(rows)
        except BaseException as error:
            item.future.set_exception(error)

    while True:
        try:
            item = work.get(block=not running)
        except queue.Empty:
            finish()
            continue
        if item is None:
            while running:
                finish()
            return
        if not item.future.set_running_or_notify_cancel():
            continue
        try:
            if not replica.has_compiled(item.task, item.shape):
                while running:  # nobody waits for a compilation of another's
                    finish()
                item.future.begun = time.monotonic()
                replica.compile(item.task, item.shape)
            started = time.monotonic()
            running.append((item, replica.dispatch(item.task, item.shape, item.inputs), started))
        except BaseException as error:  # whatever it is, somebody waits for this future
            item.future.set_exception(error)
        if len(running) >= replica.in_flight:
            finish()


class Runner:
    """Replicas behind one queue. Safe to use from several threads.

    Args:
        replicas: at least one.
        ladder: the shapes, with the rows that are this process's own.
        stats: where to count.
        ladders: of programs that have shapes of their own.
        patience: seconds that the end waits for a batch in flight, which may hang for another process; None: any.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        ladder: Ladder,
        stats: Stats,
        *,
        ladders: Mapping[str, Ladder] = MappingProxyType({}),
        patience: float | None = None,
    ) -> None:
        self.replicas = replicas
        self.ladder = ladder
        self._ladders = ladders
        self.stats = stats
        self._warm: dict[str, None] = {}  # the tasks that `warmup` has run, in their order
        self._work = _WorkQueue()
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="jaxpool-compile")
        self._threads = [
            threading.Thread(target=_serve, args=(replica, self._work, stats), name=f"jaxpool-replica-{i}", daemon=True)
            for i, replica in enumerate(replicas)
        ]
        for thread in self._threads:
            thread.start()
        self._stop = weakref.finalize(self, _stop, self._work, self._threads, self._compiling, patience)

    def program(self, task: str) -> Program:
        """One of its programs."""
        return self.replicas[0].programs[task]

    def ladder_of(self, task: str) -> Ladder:
        """The shapes of a program."""
        return self._ladders.get(task, self.ladder)

    def prepare(self, task: str, shapes: Iterable[Shape]) -> None:
        """Compiles shapes in the background, in order, while batches run: those that a call is about to need."""
        missing = [(r, shape) for shape in dict.fromkeys(shapes) for r in self.replicas if not r.has(task, shape)]
        with suppress(RuntimeError):  # closed meanwhile
            for replica, shape in missing:
                self._compiling.submit(_prepare, replica, task, shape)

    def submit(self, task: str, plan: Plan, sequences: Sequence[TokenSequence]) -> Batch:
        """Queues one batch.

        Args:
            task: which program to run.
            plan: which sequence goes where.
            sequences: by the plan's numbers.

        Returns:
            A future of the program's float32 output [R, M, C] (or [R, T, C]).

        Raises:
            RuntimeError: the runner is closed.
        """
        inputs = fill(plan, sequences, self.program(task))
        item = _Work(task, plan.shape, inputs, Batch())
        self._work.put(item)
        used = int(inputs.lengths.sum())
        self.stats.add(texts=len(plan.numbers), tokens=used, computed_tokens=plan.shape.area, batches=1)
        return item.future

    def warmup(self, tasks: Sequence[str]) -> None:
        """Compiles every shape for these tasks on every replica and runs each once.

        Where a batch does not fit the device's memory, the token budget of its ladder is halved, with a warning, once
        in a call. All tasks start over then, those of earlier calls too: the ladder's shapes are new to them.

        Raises:
            jax.errors.JaxRuntimeError: it does not fit at half the budget either.
        """
        self.check_open()
        waiting = deque(tasks)
        halved: set[str | None] = set()  # of ladders, the program that has its own, or None
        while waiting:
            task = waiting[0]
            try:
                self._run_all(task)
            except jax.errors.JaxRuntimeError as error:
                whose = task if task in self._ladders else None
                if "RESOURCE_EXHAUSTED" not in str(error) or whose in halved:
                    raise
                halved.add(whose)
                self._halve_ladder(task)
                waiting = deque(dict.fromkeys((*self._warm, *tasks)))
            else:
                self._warm[waiting.popleft()] = None

    def _halve_ladder(self, task: str) -> None:
        ladder = self.ladder_of(task)
        logger.warning(
            "a batch of %d tokens does not fit the device's memory; going on with half of that. "
            "max_num_batched_tokens= sets it",
            max(shape.area for shape in ladder.shapes),
        )
        smaller = _halve(ladder, self.replicas[0].rows.multiple)
        if task in self._ladders:
            self._ladders = {**self._ladders, task: smaller}
        else:
            self.ladder = smaller

    def _run_all(self, task: str) -> None:
        zeros = partial(np.zeros, dtype=np.int32)
        for shape in self.ladder_of(task).shapes:
            empty = self.program(task).inputs(shape.rows, shape, zeros)
            for output in [replica.dispatch(task, shape, empty) for replica in self.replicas]:
                output.block_until_ready()

    def check_open(self) -> None:
        """Raises RuntimeError once closed."""
        if self._work.closed:
            raise RuntimeError("this LLM is closed")

    def close(self) -> None:
        """Ends the replicas' threads; batches that wait are cancelled. Idempotent; also done at exit."""
        self._stop()


def _prepare(replica: Replica, task: str, shape: Shape) -> None:
    with suppress(Exception):  # said by the batch that needs it
        replica.compile(task, shape)


def _stop(
    work: _WorkQueue, threads: list[threading.Thread], compiling: ThreadPoolExecutor, patience: float | None
) -> None:
    compiling.shutdown(wait=False, cancel_futures=True)
    # A thread left inside XLA while the interpreter ends takes the process down, hence the join.
    work.close(len(threads))
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(patience)


def _halve(ladder: Ladder, row_multiple: int) -> Ladder:
    halved = ladder.with_rows(lambda rows: max(row_multiple, rows // 2 // row_multiple * row_multiple))
    return replace(halved, small=ladder.small) if ladder.packed else halved


def fill(plan: Plan, sequences: Sequence[TokenSequence], program: Program) -> Inputs:
    """The arrays of a planned batch: ids one sequence behind the other in each row, padded with 0."""
    inputs = program.inputs(plan.shape.rows, plan.shape, partial(np.zeros, dtype=np.int32))
    for r, row in enumerate(plan.members):
        start = 0
        for m, i in enumerate(row):
            if i < 0:
                break
            sequence = sequences[i]
            length = len(sequence.ids)
            inputs.ids[r, start : start + length] = sequence.ids
            inputs.lengths[r, m] = length
            for name, values in sequence.arrays.items():
                inputs.arrays[name][r, start : start + length] = values
            for option in OPTIONS:
                getattr(inputs, option)[r, m] = getattr(sequence, option)
            start += length
    return inputs
