"""Batches that take long and batches that do not: nobody waits for another's, and what waits is bounded."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from jaxpool import LLM
from jaxpool.batch import Sequence
from jaxpool.batching import make_ladder
from jaxpool.hosts import Alone
from jaxpool.pipeline import _WINDOWS_APART, execute, windows
from jaxpool.runner import Program, Runner, Stats
from tests.tiny import tiny_bert

LONG = 64
LADDER = make_ladder(LONG, LONG, packed=False)
PROGRAMS = {"embed": Program(lambda params, inputs: inputs.ids)}
# Seconds after which a test that would hang fails.
PATIENCE = 30


def sequences(count):
    """A long one, and short ones behind it; the first id of each is its number."""
    for number in range(count):
        ids = np.zeros(5 if number else LONG, np.int32)
        ids[0] = number
        yield Sequence(ids, (number,))


def answer(inputs):
    """[R, M, 1]: the first id of every sequence."""
    starts = np.cumsum(inputs.lengths, axis=1) - inputs.lengths
    firsts = np.take_along_axis(inputs.ids, np.minimum(starts, inputs.ids.shape[1] - 1), axis=1)
    return firsts[..., None].astype(np.float32)


class Gate(threading.Event):
    """What long batches wait for: it opens by itself after so many sequences in others."""

    def __init__(self, after=None):
        super().__init__()
        self._left, self._lock = after, threading.Lock()

    def count(self, sequences):
        with self._lock:
            if self._left is not None:
                self._left -= sequences
            if self._left == 0:
                self.set()


class Stub:
    """A replica behind a gate."""

    in_flight = 1
    programs = PROGRAMS

    def __init__(self, gate):
        self.gate = gate

    def has(self, task, shape):
        return True

    def has_compiled(self, task, shape):
        return True

    def dispatch(self, task, shape, inputs):
        return shape, inputs

    def download(self, output):
        shape, inputs = output
        if shape.tokens >= LONG:
            assert self.gate.wait(PATIENCE), "the short batches wait for the long one"
        else:
            self.gate.count((inputs.lengths > 0).sum())
        return answer(inputs)


def test_short_batches_go_on_while_a_long_one_runs():
    gate, count = Gate(), 1001
    runner = Runner([Stub(gate), Stub(gate)], LADDER, Stats())
    answered = []
    tokenised = (window for _, window in windows(sequences(count)))
    for sequence, row in execute(tokenised, runner, "embed", Alone(), count):
        assert row.tolist() == [*sequence.owners]
        answered += sequence.owners
        if len(answered) == count - 1:
            gate.set()
    assert answered[-1] == 0
    assert sorted(answered) == list(range(count))
    runner.close()


class Compiling(Stub):
    """A replica of a chip, which starts a batch before the last is back, and has to compile for a long one."""

    in_flight = 2

    def __init__(self, gate):
        super().__init__(gate)
        self.seen = []

    def has_compiled(self, task, shape):
        return shape.tokens < LONG

    def compile(self, task, shape):
        self.seen.append("compiled")
        time.sleep(0.5)

    def download(self, output):
        self.seen.append("read")
        return answer(output[1])


def test_nobody_waits_for_another_s_compilation():
    replica, stats = Compiling(Gate()), Stats()
    runner = Runner([replica], LADDER, stats)
    tokenised = (window for _, window in windows(reversed([*sequences(3)])))
    assert len([*execute(tokenised, runner, "embed", Alone(), 3)]) == 3
    runner.close()
    assert sorted(replica.seen) == ["compiled", *["read"] * (len(replica.seen) - 1)]
    assert 0 < stats.device_seconds < 0.5, "compiling is not the device's time"


@pytest.fixture
def llm(tmp_path):
    with LLM(tiny_bert(tmp_path, positions=LONG), deterministic=True, max_num_batched_tokens=LONG) as engine:
        yield engine


@pytest.mark.parametrize("call", ["embed", "embed_array", "embed_stream"])
def test_answers_keep_the_order_of_the_texts(llm, call):
    prompts = [[5] * LONG, *([6 + i % 40, 7, 8 + i // 40] for i in range(800))]
    gate = Gate(after=800)
    whole = llm.engine.runner
    llm.engine.runner = Runner([Stub(gate), Stub(gate)], whole.ladder, llm.stats)
    found = getattr(llm, call)(prompts, **({"use_tqdm": False} if call == "embed" else {}))
    values = [out.outputs.embedding[0] if call == "embed" else out[0] for out in found]
    assert values == [prompt[0] for prompt in prompts]
    llm.engine.runner.close()
    llm.engine.runner = whole


class Computed:
    """A runner whose short batches are done at once, and whose long one is `held`."""

    replicas = (None, None)

    def __init__(self):
        self.stats, self.held = Stats(), None

    def ladder_of(self, task):
        return LADDER

    def program(self, task):
        return PROGRAMS[task]

    def prepare(self, task, shapes):
        pass

    def submit(self, task, plan, sequences):
        future = Future()
        if plan.shape.tokens == LONG:
            self.held = future
        else:
            future.set_result(np.zeros((plan.shape.rows, plan.shape.places, 1), np.float32))
        return future


def test_what_waits_for_a_long_batch_is_bounded():
    runner, count, drawn, seen = Computed(), 30, 0, []

    class LetsGo(Alone):
        def next(self, done):
            if done.empty():  # only the long one is left to wait for
                seen.append(drawn)
                runner.held.set_result(np.zeros((1, 1, 1), np.float32))
            return super().next(done)

    def tokenised():
        nonlocal drawn
        for start in range(count):
            drawn += 1
            yield [s for s in sequences(64 * count) if s.owners[0] // 64 == start]

    answered = [sequence.owners[0] for sequence, _ in execute(tokenised(), runner, "embed", LetsGo(), 64 * count)]
    assert sorted(answered) == list(range(64 * count))
    assert seen == [1 + _WINDOWS_APART + 1]  # its own window, those that may pass it, and the one that may not
