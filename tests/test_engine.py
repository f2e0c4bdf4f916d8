"""The engine's promises: the same answer in any company, on any mesh, from any thread, and nothing compiled twice."""

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref

import jax
import numpy as np
import pytest

from jaxpool import LLM
from jaxpool.batch import Sequence as TokenSequence
from jaxpool.batching import make_ladder
from jaxpool.hosts import Alone
from jaxpool.pipeline import execute
from jaxpool.runner import Program, Replica, Runner, Stats, _halve
from jaxpool.sharding import make_mesh
from tests.tiny import tiny_bert

WORDS = "the quick brown fox jumps over a lazy dog while seven small birds sing".split()


def texts(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory, max_num_batched_tokens=128) as engine:
        yield engine


def test_any_company(llm):
    sample = texts(200)
    alone = np.concatenate([llm.embed_array([t]) for t in sample])
    together = llm.embed_array(sample)
    reversed_ = llm.embed_array(sample[::-1])[::-1]
    limit = 1e-6 * np.abs(alone).max()
    assert np.abs(together - alone).max() <= limit
    assert np.abs(reversed_ - alone).max() <= limit


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_deterministic_is_bitwise(pooling, tmp_path):
    sample = texts(150, seed=3)
    with LLM(tiny_bert(tmp_path, pooling=pooling), deterministic=True, max_num_batched_tokens=128) as llm:
        together = llm.embed_array(sample)
        order = np.random.default_rng(1).permutation(len(sample))
        shuffled = llm.embed_array([sample[i] for i in order])
        alone = np.concatenate([llm.embed_array([t]) for t in sample])
    np.testing.assert_array_equal(together[order], shuffled)
    np.testing.assert_array_equal(together, alone)


def test_deterministic_and_packed_agree(llm, directory):
    sample = texts(60, seed=4)
    with LLM(directory, deterministic=True) as single:
        assert np.abs(single.embed_array(sample) - llm.embed_array(sample)).max() <= 1e-6


def test_nothing_compiles_after_warmup(directory):
    with LLM(directory, max_num_batched_tokens=128) as llm:
        llm.warmup()
        compiled = llm.stats.compilations
        assert compiled == len(llm.engine.runner.ladder.shapes) * len(llm.engine.meshes)
        for _ in llm.embed_stream(texts(10_000, seed=5, longest=30)):
            pass
        for t in texts(50, seed=6):
            llm.embed(t, truncate_prompt_tokens=-1, use_tqdm=False)
        assert llm.stats.compilations == compiled


def test_results_keep_the_order_of_the_input(llm):
    sample = texts(1500, seed=7)
    array = llm.embed_array(sample)
    stream = list(llm.embed_stream(iter(sample)))
    outputs = llm.embed(sample, truncate_prompt_tokens=-1, use_tqdm=False)
    assert np.abs(np.stack(stream) - array).max() <= 1e-6
    assert np.abs(np.array([o.outputs.embedding for o in outputs], np.float32) - array).max() <= 1e-6
    assert [int(o.request_id) for o in outputs] == list(
        range(int(outputs[0].request_id), int(outputs[0].request_id) + 1500)
    )


def test_duplicates_are_computed_once(llm):
    before = llm.stats.texts
    array = llm.embed_array(["the fox", "a dog", "the fox", "the fox"])
    assert llm.stats.texts - before == 2
    np.testing.assert_array_equal(array[0], array[2])
    np.testing.assert_array_equal(array[0], array[3])


def test_empty_strings_have_a_vector(llm):
    array = llm.embed_array(["", "the fox", ""])
    assert np.isfinite(array).all()
    np.testing.assert_array_equal(array[0], array[2])


def test_prompt_forms_agree(llm):
    (text,) = llm.embed("the quick fox", use_tqdm=False)
    ids = text.prompt_token_ids
    forms = ["the quick fox", ids, {"prompt": "the quick fox"}, {"prompt_token_ids": ids}, np.array(ids), tuple(ids)]
    for form in forms:
        (out,) = llm.embed(form, use_tqdm=False)
        np.testing.assert_allclose(out.outputs.embedding, text.outputs.embedding, atol=1e-6)
    assert len(llm.embed(forms, use_tqdm=False)) == len(forms)


def test_numpy_texts(llm):
    sample = ["the fox", "a dog"]
    np.testing.assert_array_equal(llm.embed_array(np.array(sample)), llm.embed_array(tuple(sample)))


def test_a_stream_is_drawn_as_it_is_read(llm):
    drawn = 0

    def source():
        nonlocal drawn
        for t in texts(20_000, seed=8, longest=5):
            drawn += 1
            yield t

    stream = llm.embed_stream(source())
    for _ in range(10):
        next(stream)
    assert drawn < 6000
    stream.close()


def test_a_stream_runs_in_the_readers_thread(llm):
    threads = set()

    def source():
        for t in texts(300, seed=9):
            threads.add(threading.get_ident())
            yield t

    list(llm.embed_stream(source()))
    assert threads == {threading.get_ident()}


def test_several_threads(llm):
    samples = [texts(120, seed=s) for s in range(6)]
    expected = [llm.embed_array(s) for s in samples]
    got = [None] * 6

    def work(i):
        got[i] = llm.embed_array(samples[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-6


def test_all_keeps_every_token(directory):
    with LLM(directory, pooler_config={"pooling_type": "ALL", "normalize": False}, max_num_batched_tokens=128) as every:
        outputs = every.encode(["the quick fox", "a dog"], use_tqdm=False)
        with pytest.raises(ValueError, match="use encode"):
            every.embed("a dog", use_tqdm=False)
    assert [o.outputs.data.shape for o in outputs] == [(len(o.prompt_token_ids), 32) for o in outputs]
    for pooling, rows in (("CLS", 0), ("LAST", -1), ("MEAN", slice(None))):
        with LLM(directory, override_pooler_config={"pooling_type": pooling, "normalize": False}) as one:
            for whole, pooled in zip(outputs, one.encode(["the quick fox", "a dog"], use_tqdm=False), strict=True):
                expected = whole.outputs.data[rows]
                expected = expected.mean(0) if pooling == "MEAN" else expected
                np.testing.assert_allclose(pooled.outputs.data, expected, atol=1e-6)


def test_bfloat16_is_close(llm, directory):
    sample = texts(50, seed=10)
    with LLM(directory, dtype="bfloat16") as half:
        a, b = half.embed_array(sample), llm.embed_array(sample)
    assert (a * b).sum(1).min() >= 0.999


def test_closing(directory):
    engine = LLM(directory)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError):
        engine.embed_array(["the fox"])


def test_closing_under_load_leaves_nobody_waiting(directory):
    engine = LLM(directory)
    engine.warmup()
    ended = []

    def work(seed):
        try:
            while True:
                engine.embed_array(texts(200, seed=seed))
        except RuntimeError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for t in threads:
        t.start()
    engine.embed_array(texts(200, seed=20))
    engine.close()
    for t in threads:
        t.join(timeout=60)
    assert len(ended) == 4
    with pytest.raises(RuntimeError, match="closed"):
        engine.warmup()


def test_vectors_of_duplicates_are_their_own(llm):
    a, b = llm.embed_stream(["the fox", "the fox"])
    a *= 2
    assert not np.array_equal(a, b)


def test_the_first_vectors_come_early(llm):
    drawn = 0

    def source():
        nonlocal drawn
        for t in texts(5000, seed=12, longest=5):
            drawn += 1
            yield t

    stream = llm.embed_stream(source())
    next(stream)
    assert drawn <= 1000
    stream.close()


def test_cutting_the_left_side(directory, llm, tmp_path):
    import json
    import shutil

    copy = shutil.copytree(directory, tmp_path / "left")
    config = (
        json.loads((copy / "tokenizer_config.json").read_text()) if (copy / "tokenizer_config.json").exists() else {}
    )
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    long = " ".join(texts(50, seed=13)) + " seven small birds"
    (whole,) = llm.embed("seven small birds", use_tqdm=False)
    with LLM(copy) as left:
        (cut,) = left.embed(long, truncate_prompt_tokens=5, use_tqdm=False)
        (huge,) = left.embed(long * 500, truncate_prompt_tokens=5, use_tqdm=False)
    assert cut.prompt_token_ids == whole.prompt_token_ids
    assert huge.prompt_token_ids == whole.prompt_token_ids


def test_a_forgotten_engine_ends_its_threads(directory):
    before = threading.active_count()
    engine = LLM(directory)
    engine.embed_array(["the fox"])
    forgotten = weakref.ref(engine.engine.runner)
    del engine
    gc.collect()
    assert forgotten() is None
    assert threading.active_count() <= before + 2


def test_a_failing_batch_fails_its_request_only(llm, monkeypatch):
    replica_class = type(llm.engine.runner.replicas[0])
    whole = replica_class.dispatch

    def broken(self, task, shape, inputs):
        raise RuntimeError("the device caught fire")

    monkeypatch.setattr(replica_class, "dispatch", broken)
    with pytest.raises(RuntimeError, match="caught fire"):
        llm.embed_array(["the fox"])
    monkeypatch.setattr(replica_class, "dispatch", whole)
    assert llm.embed_array(["the fox"]).shape == (1, 32)


class _SmallMemory(Replica):
    """A replica whose memory ends at so many tokens a batch, by task; `ran` is what it has run."""

    def __init__(self, ends):
        program = Program(lambda params, inputs: inputs.ids)
        super().__init__(make_mesh(jax.local_devices()[:1]), {}, dict.fromkeys(ends, program), Stats())
        self.ends, self.ran = ends, set()

    def dispatch(self, task, shape, inputs):
        if shape.area > self.ends[task]:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        self.ran.add((task, shape))
        return jax.numpy.zeros((shape.rows, shape.places, 4))


def small_memory(budget, **ends):
    """A runner on it, and the replica."""
    replica = _SmallMemory(ends)
    return Runner([replica], make_ladder(32, budget), Stats()), replica


@pytest.mark.parametrize(("budget", "works"), [(128, True), (256, False)])
def test_out_of_memory_halves_the_budget_once(budget, works, caplog):
    runner, _ = small_memory(budget, embed=64)
    with caplog.at_level(logging.WARNING, "jaxpool"):
        if works:
            runner.warmup(["embed"])
            assert max(s.area for s in runner.ladder.shapes) == budget // 2
        else:
            with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
                runner.warmup(["embed"])
    assert sum("half of that" in r.message for r in caplog.records) == 1
    runner.close()


@pytest.mark.parametrize("calls", [[["embed", "token_embed"]], [["embed"], ["token_embed"]]], ids=["one", "two"])
def test_out_of_memory_at_a_later_task_warms_the_earlier_ones_again(calls, caplog):
    runner, replica = small_memory(256, embed=256, token_embed=128)
    for tasks in calls:
        runner.warmup(tasks)
    assert max(shape.area for shape in runner.ladder.shapes) == 128
    assert replica.ran >= {(task, shape) for task in ("embed", "token_embed") for shape in runner.ladder.shapes}
    assert sum("half of that" in message for message in caplog.messages) == 1
    runner.close()


def test_two_tasks_that_do_not_fit_halve_their_ladder_once(caplog):
    runner, _ = small_memory(256, embed=128, token_embed=64)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        runner.warmup(["embed", "token_embed"])
    assert max(shape.area for shape in runner.ladder.shapes) == 128
    assert sum("half of that" in message for message in caplog.messages) == 1
    runner.close()


def test_halving_keeps_whole_shards():
    assert all(s.rows % 8 == 0 for s in _halve(make_ladder(256, 4096, row_multiple=8), 8).shapes)


class _Compiling(Replica):
    """A replica that notes which thread compiles what, and whose own thread waits for another to have begun."""

    def __init__(self, fails=()):
        program = Program(lambda params, inputs: inputs.lengths[..., None] * 1.0)
        super().__init__(make_mesh(jax.local_devices()[:1]), {}, {"embed": program}, Stats())
        self.fails, self.compiled, self.begun = fails, [], threading.Event()

    def _compile(self, task, shape):
        thread = threading.current_thread().name.rpartition("_")[0] or threading.current_thread().name
        self.compiled.append((thread, shape.tokens))
        if thread == "jaxpool-compile":
            self.begun.set()
        elif thread.startswith("jaxpool-replica"):
            assert self.begun.wait(30), "nothing is compiled in the background"
        if shape.tokens in self.fails:
            raise RuntimeError(f"no program of {shape.tokens} tokens")
        return super()._compile(task, shape)


def test_shapes_are_prepared_in_the_background_in_order_and_once():
    ladder = make_ladder(64, 64, packed=False)
    replicas = [_Compiling(), _Compiling()]
    runner = Runner(replicas, ladder, Stats())
    for _ in range(2):
        runner.prepare("embed", [ladder.full[t] for t in (64, 16, 64, 32)])
        runner._compiling.submit(lambda: None).result()  # its one thread is through
    for replica in replicas:
        assert replica.compiled == [("jaxpool-compile", t) for t in (64, 16, 32)]
        assert not replica.has("embed", ladder.full[48])
    runner.close()
    runner.prepare("embed", ladder.shapes)  # nobody is there any more; nobody minds


def test_the_next_batchs_program_compiles_while_the_first_ones_does():
    ladder = make_ladder(64, 64, packed=False)
    replica = _Compiling()
    runner = Runner([replica], ladder, Stats())
    sequences = [TokenSequence(np.ones(n, np.int32), (n,)) for n in (60, 10)]
    found = {s.owners: row.tolist() for s, row in execute(iter([sequences]), runner, "embed", Alone(), 2)}
    assert found == {(60,): [60], (10,): [10]}
    assert sorted(replica.compiled) == [("jaxpool-compile", 16), ("jaxpool-replica-0", 64)]
    runner.close()


def test_what_cannot_be_prepared_is_said_by_the_batch_that_needs_it():
    ladder = make_ladder(64, 64, packed=False)
    runner = Runner([_Compiling(fails={16})], ladder, Stats())
    sequences = [TokenSequence(np.ones(n, np.int32), (n,)) for n in (60, 10)]
    answers = execute(iter([sequences]), runner, "embed", Alone(), 2)
    assert next(answers)[0].owners == (60,)
    with pytest.raises(RuntimeError, match="no program of 16 tokens"):
        next(answers)
    runner.close()


EIGHT = """
import sys
import numpy as np
from jaxpool import LLM
texts = np.load(sys.argv[2], allow_pickle=False).tolist()
with LLM(sys.argv[1], data_parallel_size=8) as llm:
    assert llm.engine.meshes[0].shape == {'data': 8, 'model': 1}, llm.engine.meshes
    assert len(llm.engine.meshes) == 1
    sharded = llm.engine.runner.replicas[0]
    output = llm.embed_array(texts)
    compiled = llm.stats.compilations
    llm.embed_array(texts)
    assert llm.stats.compilations == compiled
np.save(sys.argv[3], output)
"""


def test_eight_devices_answer_as_one(llm, directory, tmp_path):
    sample = texts(200, seed=11)
    np.save(tmp_path / "texts.npy", np.array(sample))
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    arguments = [sys.executable, "-c", EIGHT, directory, tmp_path / "texts.npy", tmp_path / "eight.npy"]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "eight.npy") - llm.embed_array(sample)).max() <= 1e-6


def test_one_stream_a_core_unless_jax_was_set_up(directory):
    code = "from jaxpool import LLM; import sys; print(len(LLM(sys.argv[1]).engine.meshes))"

    def streams(before, **env):
        arguments = [sys.executable, "-c", before + code, directory]
        done = subprocess.run(arguments, env={**os.environ, **env}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    cores = len(os.sched_getaffinity(0))
    assert streams("") == min(cores, 8)
    assert streams("import jax; jax.devices(); ") == 1
    assert streams("", XLA_FLAGS="--xla_force_host_platform_device_count=4") == 1


def test_a_jax_that_has_started_keeps_its_devices_and_one_stream_and_that_is_said_once(directory):
    code = """
import logging, sys, jax
logging.basicConfig(level="INFO", format="%(levelname)s %(name)s %(message)s")
before = jax.devices()
from jaxpool import LLM
engines = [LLM(sys.argv[1]) for _ in range(2)]
assert jax.devices() == before
assert [[mesh.devices.tolist() for mesh in llm.engine.meshes] for llm in engines] == [[[[before[0]]]]] * 2
"""
    done = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "stream" in line]
    assert said == ["INFO jaxpool JAX had started before the first LLM(): its CPU devices stay as they are, one stream"]


def test_progress_can_be_replaced(llm):
    calls = []

    class Bar:
        def __init__(self, **options):
            calls.append(options["total"])

        def update(self, n):
            calls.append(n)

        def close(self):
            calls.append("closed")

    llm.embed(["the fox", "a dog", "a dog"], use_tqdm=Bar)
    assert calls[0] == 3
    assert sum(calls[1:-1]) == 3
    assert calls[-1] == "closed"


def test_repr_shows_the_recipe(llm):
    text = repr(llm)
    for part in (
        "BertModel",
        "pooling",
        "normalised",
        "max length",
        "prompts",
        "dtype: float32",
        "cpu:0",
        "parameters",
    ):
        assert part in text
