"""Continuous batching: who gets into which batch, who waits how long, and what happens when the device fails."""

import random
import threading
import time
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest

from jaxpool.batch import Sequence
from jaxpool.batching import make_ladder
from jaxpool.runner import Batch
from jaxpool.server import scheduler as module
from jaxpool.server.scheduler import DeadlineError, DeviceError, Scheduler, Work
from jaxpool.tasks import EMBED, TOKEN_EMBED

# Seconds after which something that should happen at once has not happened.
SOON = 20


class Runner:
    """One replica that runs what it is told to, when it is told to. A sequence's answer is its first id."""

    def __init__(self, budget=512):
        self.ladder = make_ladder(256, budget)
        self.replicas = [SimpleNamespace(in_flight=1)]
        self.submitted = SimpleQueue()
        self.batches = []

    def ladder_of(self, task):
        return self.ladder

    def program(self, task):
        return SimpleNamespace(per_token=task == TOKEN_EMBED)

    def submit(self, task, plan, sequences):
        future = Batch()
        future.begun = None if self.submitted.qsize() else time.monotonic()  # the next waits for this one
        self.batches.append([sequences[i] for row in plan.members.tolist() for i in row if i >= 0])
        self.submitted.put((task, plan, sequences, future))
        return future

    def run(self, error=None):
        """Runs the next batch."""
        task, plan, sequences, future = self.submitted.get(timeout=SOON)
        if error is not None:
            future.set_exception(error)
            return
        shape = plan.shape
        per_token = task == TOKEN_EMBED
        output = np.zeros((shape.rows, shape.tokens if per_token else shape.places, 1), np.float32)
        for r, row in enumerate(plan.members):
            start = 0
            for m, i in enumerate(row):
                if i < 0:
                    break
                ids = sequences[i].ids
                if per_token:
                    output[r, start : start + len(ids), 0] = ids
                else:
                    output[r, m, 0] = ids[0]
                start += len(ids)
        future.set_result(output)

    def run_all(self, stopped):
        while not stopped.is_set():
            if not self.submitted.empty():
                self.run()
            else:
                time.sleep(0.0005)


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture
def scheduler(runner):
    scheduler = Scheduler(runner)
    yield scheduler
    scheduler.close()


def sequences(count, length=16, first=0):
    return [Sequence(np.full(length, first + i, np.int32), (i,)) for i in range(count)]


def work(sequences, task=EMBED, **more):
    """A request, and the queue that its outcome comes into."""
    outcome = SimpleQueue()
    return Work(task, sequences, outcome.put, **more), outcome


def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_an_idle_device_starts_at_once(runner, scheduler):
    own, outcome = work(sequences(1, first=7))
    scheduler.submit(own)
    runner.run()  # nothing else came, and no clock had to run out
    ((_, rows),) = outcome.get(timeout=SOON)
    assert rows == [7]
    assert scheduler.queued_tokens == 0


def test_small_requests_do_not_wait_for_a_large_one(runner, scheduler):
    large, large_outcome = work(sequences(2000))
    scheduler.submit(large)
    until(lambda: len(runner.batches) == 2)  # all that may be in flight
    small, small_outcome = work(sequences(1, first=-5))
    scheduler.submit(small)
    for _ in range(8):
        runner.run()
    ((_, rows),) = small_outcome.get(timeout=SOON)
    assert rows == [-5]
    assert large_outcome.empty()
    # Nor does the large one wait for ever: small ones keep coming.
    for number in range(400):
        if not large_outcome.empty():
            break
        scheduler.submit(work(sequences(1, first=number))[0])
        runner.run()
    answers = large_outcome.get(timeout=SOON)
    assert {s.owners[0]: int(rows[0]) for s, rows in answers} == {i: i for i in range(2000)}


def test_waiting_requests_fill_one_batch(runner, scheduler):
    """An idle device begins at once; beside a batch that runs, only one that is full begins."""
    scheduler.submit(work(sequences(1))[0])
    until(lambda: len(runner.batches) == 1)
    for number in range(28):
        scheduler.submit(work(sequences(1, first=number))[0])
    time.sleep(0.1)
    assert len(runner.batches) == 1
    runner.run()
    until(lambda: len(runner.batches) == 2)
    assert len(runner.batches[1]) == 28
    scheduler.submit(work(sequences(32))[0])  # as many tokens as a batch has
    until(lambda: len(runner.batches) == 3)
    assert len(runner.batches[2]) == 32
    assert runner.submitted.qsize() == 2


def test_priorities(runner, scheduler):
    for _ in range(2):
        scheduler.submit(work(sequences(32, length=256))[0])
    until(lambda: len(runner.batches) == 2)
    later, _ = work(sequences(40, length=256, first=100), priority=1)
    sooner, _ = work(sequences(2, length=256, first=200), priority=-1)
    scheduler.submit(later)
    scheduler.submit(sooner)
    for _ in range(40):
        runner.run()
        if any(s.ids[0] >= 200 for batch in runner.batches for s in batch):
            break
    assert not any(100 <= s.ids[0] < 200 for batch in runner.batches for s in batch)


def test_what_nobody_waits_for_is_not_computed(runner, scheduler):
    large, outcome = work(sequences(2000))
    scheduler.submit(large)
    until(lambda: len(runner.batches) == 2)
    scheduler.drop(large)
    assert scheduler.queued_tokens == 0
    for _ in range(2):
        runner.run()
    own, own_outcome = work(sequences(1, first=9))
    scheduler.submit(own)
    runner.run()
    assert own_outcome.get(timeout=SOON)[0][1] == [9]
    assert len(runner.batches) == 3
    assert outcome.empty()


def test_a_deadline(runner, scheduler):
    for _ in range(3):
        scheduler.submit(work(sequences(64, length=256))[0])
    until(lambda: len(runner.batches) == 2)
    late, outcome = work(sequences(1), deadline=time.monotonic() + 0.05)
    scheduler.submit(late)
    assert isinstance(outcome.get(timeout=SOON), DeadlineError)


def test_a_deadline_that_is_over_already(runner, scheduler, monkeypatch):
    """It comes while another batch is started, and is all that waits behind it: the scheduler goes on."""
    late, late_outcome = work(sequences(1), deadline=time.monotonic() - 1)
    real = runner.submit

    def submit(*arguments):
        monkeypatch.undo()
        scheduler.submit(late)
        return real(*arguments)

    monkeypatch.setattr(runner, "submit", submit)
    scheduler.submit(work(sequences(1))[0])
    assert isinstance(late_outcome.get(timeout=SOON), DeadlineError)
    own, outcome = work(sequences(1, first=4))
    scheduler.submit(own)
    runner.run()
    runner.run()
    assert outcome.get(timeout=SOON)[0][1] == [4]
    assert scheduler.alive


def test_a_failed_batch_ends_its_requests_only(runner, scheduler):
    failed, failed_outcome = work(sequences(400))
    scheduler.submit(failed)
    runner.run(error=RuntimeError("the device is gone"))
    assert isinstance(failed_outcome.get(timeout=SOON), DeviceError)
    runner.run()  # the other one in flight
    other, outcome = work(sequences(1, first=3))
    scheduler.submit(other)
    runner.run()
    assert outcome.get(timeout=SOON)[0][1] == [3]
    assert failed_outcome.empty()  # told once
    assert scheduler.queued_tokens == 0


def test_one_failure_after_another_is_trouble(runner, scheduler):
    for number in range(module.FAILURES):
        assert not scheduler.failing
        own, outcome = work(sequences(1, first=number))
        scheduler.submit(own)
        runner.run(error=RuntimeError("again"))
        assert isinstance(outcome.get(timeout=SOON), DeviceError)
    until(lambda: scheduler.failing)
    own, outcome = work(sequences(1))
    scheduler.submit(own)
    runner.run()
    outcome.get(timeout=SOON)
    assert not scheduler.failing


def test_half_of_the_batches_failing_is_trouble(runner, scheduler):
    """One replica of two is lost: no three batches in a row need to fail."""
    failures, of = module.OF_LAST
    for number in range(of):
        assert not scheduler.failing
        own, outcome = work(sequences(1, first=number))
        scheduler.submit(own)
        runner.run(error=RuntimeError("again") if number % 2 else None)
        outcome.get(timeout=SOON)
    until(lambda: scheduler.failing)
    assert failures == of // 2


def test_a_batch_that_hangs(runner):
    """Its requests are told, the server is not healthy meanwhile, and others go on."""
    scheduler = Scheduler(runner, batch_timeout=0.2)
    hung, outcome = work(sequences(400))  # more than what hangs: the rest is not computed
    scheduler.submit(hung)
    other, other_outcome = work(sequences(1, first=5))
    assert not scheduler.hanging
    assert isinstance(outcome.get(timeout=SOON), DeviceError)
    assert scheduler.hanging
    until(lambda: scheduler.queued_tokens == 0)
    scheduler.submit(other)
    first = runner.submitted.get(timeout=SOON)
    while other_outcome.empty():  # the second batch of the first request, and the other one's
        runner.run()
        time.sleep(0.01)
    assert other_outcome.get()[0][1] == [5]
    assert scheduler.hanging
    runner.submitted.put(first)
    runner.run()  # it comes back after all, and nobody wants it
    until(lambda: not scheduler.hanging)
    assert outcome.empty()
    scheduler.close()


def test_a_batch_behind_another_does_not_hang(runner):
    """Its time begins when nothing else keeps the replica."""
    scheduler = Scheduler(runner, batch_timeout=0.2)
    scheduler.submit(work(sequences(64))[0])  # two batches
    until(lambda: len(runner.batches) == 2)
    until(lambda: scheduler.hanging)
    assert [batch.lost for batch in sorted(scheduler._running, key=lambda batch: batch.started)] == [True, False]
    scheduler.close()


def test_what_waits_is_counted(runner, scheduler):
    """A request that is planned, but not begun, waits too; a large one's tokens are counted apart as well."""
    large, large_outcome = work(sequences(200, length=16), large=True)
    scheduler.submit(large)
    until(lambda: len(runner.batches) == 2)
    until(lambda: scheduler.large_tokens == scheduler.queued_tokens == (200 - 64) * 16)
    assert scheduler.waiting == 1
    small, _ = work(sequences(3, length=16))
    scheduler.submit(small)
    assert scheduler.waiting == 2
    assert scheduler.queued_tokens - scheduler.large_tokens == 3 * 16
    scheduler.drop(large)
    assert (scheduler.large_tokens, scheduler.queued_tokens, scheduler.waiting) == (0, 3 * 16, 1)
    assert large_outcome.empty()


def test_a_runner_that_is_closed(runner, scheduler, monkeypatch):
    def submit(*_):
        raise RuntimeError("this LLM is closed")

    monkeypatch.setattr(runner, "submit", submit)
    own, outcome = work(sequences(1))
    scheduler.submit(own)
    assert isinstance(outcome.get(timeout=SOON), DeviceError)


def test_closing_tells_who_waits(runner):
    scheduler = Scheduler(runner)
    waiting, outcome = work(sequences(2000))
    scheduler.submit(waiting)
    until(lambda: len(runner.batches) == 2)
    scheduler.close()
    assert "shutting down" in str(outcome.get(timeout=SOON))
    with pytest.raises(RuntimeError, match="closed"):
        scheduler.submit(work(sequences(1))[0])


def test_everybody_gets_the_own_answers(runner, scheduler):
    """Many threads, both tasks, all lengths, some dropped."""
    stopped = threading.Event()
    device = threading.Thread(target=runner.run_all, args=(stopped,))
    device.start()
    wrong = []

    def client(seed):
        rng = random.Random(seed)
        for _ in range(20):
            task = rng.choice([EMBED, TOKEN_EMBED])
            count = rng.choice([1, 3, 100])
            asked = [
                Sequence(np.full(rng.randint(1, 256), rng.randint(0, 10**6), np.int32), (i,)) for i in range(count)
            ]
            own, outcome = work(asked, task)
            scheduler.submit(own)
            if rng.random() < 0.1:
                scheduler.drop(own)
                continue
            answers = outcome.get(timeout=60)
            if len(answers) != count:
                wrong.append(len(answers))
            for sequence, rows in answers:
                expected = sequence.ids[:, None] if task == TOKEN_EMBED else sequence.ids[:1]
                if not np.array_equal(rows, expected):
                    wrong.append((sequence, rows))

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    until(lambda: scheduler.busy == 0)
    stopped.set()
    device.join()
    assert not wrong
    assert scheduler.queued_tokens == 0
    assert scheduler.waiting == 0


def test_tasks_take_turns(runner, scheduler):
    """A long line for one program does not keep another program waiting."""
    large, large_outcome = work(sequences(2000))
    scheduler.submit(large)
    until(lambda: len(runner.batches) == 2)  # all that may be in flight
    other, other_outcome = work(sequences(1, first=7), task=TOKEN_EMBED)
    scheduler.submit(other)
    for _ in range(4):
        runner.run()
    ((_, rows),) = other_outcome.get(timeout=SOON)
    assert rows[0] == [7]
    assert large_outcome.empty()


def test_a_batch_that_cannot_be_planned_fails_alone(runner, scheduler):
    wrong, outcome = work(sequences(1, length=9999))
    scheduler.submit(wrong)
    assert isinstance(outcome.get(timeout=SOON), RuntimeError)
    right, outcome = work(sequences(1, first=6))
    scheduler.submit(right)
    runner.run()
    ((_, rows),) = outcome.get(timeout=SOON)
    assert rows == [6]
    assert scheduler.alive
    assert scheduler.queued_tokens == 0
