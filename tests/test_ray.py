"""Ray Data: the same answers as one process gives, also when workers and nodes die in the middle."""

import contextlib
import logging
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpool import LLM
from jaxpool.integrations import tables
from jaxpool.integrations.ray import classify_dataset, embed_dataset, rerank_dataset, score_dataset
from tests.tiny import SENTENCES, tiny_bert, tiny_classifier

ray = pytest.importorskip(
    "ray", reason="NOTHING OF jaxpool.integrations.ray IS TESTED without Ray: pip install 'jaxpool[ray]'"
)
pytest.importorskip("ray.data", reason="NOTHING OF jaxpool.integrations.ray IS TESTED: pip install 'jaxpool[ray]'")
psutil = pytest.importorskip("psutil", reason="NOTHING OF jaxpool.integrations.ray IS TESTED without psutil")

EXAMPLE = Path(__file__).parent.parent / "examples" / "ray_embed.py"
ROWS = 120
# Of the cluster's processes: no looking for chips, on the hub or for a cloud's credentials, and no device counts that
# another test has set.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
NODE = {"num_cpus": 2, "resources": {"replica": 1}, "object_store_memory": 100 * 2**20}
# A node that is gone is to be missed after five half seconds, not after five times three seconds.
HEAD = {"resources": {}, "include_dashboard": False, "_system_config": {"health_check_period_ms": 500}}
FEW = {"max_num_batched_tokens": 64}  # few shapes to compile, in each process

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def cluster():
    """A head, and two nodes with room for one "replica" each."""
    from ray.cluster_utils import Cluster

    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args=NODE | HEAD)
        try:
            for _ in range(2):
                cluster.add_node(**NODE)
            ray.init(address=cluster.address, log_to_driver=False)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.read_op_min_num_blocks = 4  # Ray would make a task of each row
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
    left = set(psutil.Process().children(recursive=True)) - before
    assert not psutil.wait_procs(left, timeout=10)[1], "Ray has left processes behind"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("embedder"), positions=32)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return tiny_classifier(tmp_path_factory.mktemp("scorer"), labels=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_classifier(tmp_path_factory.mktemp("classifier"), labels=3)


def text(i):
    return f"{i} {SENTENCES[i % len(SENTENCES)]}"


def vectors_of(directory, rows):
    with LLM(directory, **FEW) as llm:
        return llm.embed_array(list(map(text, range(rows))))


def check_vectors(table, expected):
    """Every row once, with its own vector."""
    order = np.argsort(table["id"].to_numpy())
    assert table["id"].to_numpy()[order].tolist() == list(range(len(expected)))
    assert table["text"].take(order).to_pylist() == list(map(text, range(len(expected))))
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), expected.shape[1])
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy())[order], expected, atol=1e-6)


def collected(ds):
    return pa.concat_tables(ds.iter_batches(batch_size=None, batch_format="pyarrow"))


def replicas():
    """The processes of actors that hold a model."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Replica" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_four_models_in_one_pipeline(cluster, embedder, classifier, scorer):
    columns = ("id", "text", "query", "document", "documents")
    rows = [
        dict(zip(columns, (i, text(i), text(i), text(3 * i), [text(j) for j in range(i % 5)]), strict=True))
        for i in range(20)
    ]
    ds = embed_dataset(ray.data.from_items(rows), embedder, batch_size=7, num_cpus=0.25, llm_arguments=FEW)
    ds = classify_dataset(ds, classifier, num_cpus=0.25, llm_arguments=FEW)
    ds = score_dataset(ds, scorer, num_cpus=0.25, llm_arguments=FEW)
    table = collected(rerank_dataset(ds, scorer, top_n=3, num_cpus=0.25, llm_arguments=FEW))
    assert table.column_names == [*columns, "embedding", "probs", "score", "ranking"]
    check_vectors(table, vectors_of(embedder, 20))

    with LLM(classifier, task="classify", **FEW) as llm:
        outputs = llm.classify(table["text"].to_pylist(), use_tqdm=False)
    assert table.schema.field("probs").type == pa.list_(pa.float32(), 3)
    np.testing.assert_allclose(table["probs"].to_pylist(), [o.outputs.probs for o in outputs], atol=1e-6)

    with LLM(scorer, task="score", **FEW) as llm:
        outputs = llm.score(table["query"].to_pylist(), table["document"].to_pylist(), use_tqdm=False)
        np.testing.assert_allclose(table["score"], [o.outputs.score for o in outputs], atol=1e-6)
        for row in table.to_pylist():
            ranked = llm.rerank(row["query"], row["documents"], top_n=3) if row["documents"] else []
            assert [one["index"] for one in row["ranking"]] == [one.index for one in ranked]
            np.testing.assert_allclose([one["score"] for one in row["ranking"]], [o.score for o in ranked], atol=1e-6)


def test_what_dies_is_done_again(cluster, embedder):
    """A worker is killed at the first rows; when a third of them is there, another one's node is replaced."""

    def slowly(batch):
        time.sleep(0.3)
        return {"id": batch["id"], "text": [texts[i] for i in batch["id"]]}

    texts = list(map(text, range(ROWS)))
    one_by_one = ray.data.TaskPoolStrategy(size=1)
    slow = ray.data.range(ROWS, override_num_blocks=20).map_batches(slowly, compute=one_by_one, num_cpus=0.5)
    place = {"resources": {"replica": 1}, "llm_arguments": FEW}
    out = embed_dataset(slow, embedder, batch_size=6, concurrency=2, num_cpus=0.5, **place)
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    parts, rows, killed, gone, home = [], 0, None, None, None
    for part in out.iter_batches(batch_size=None, batch_format="pyarrow"):
        parts.append(part)
        rows += len(part)
        if killed is None:
            assert rows < ROWS / 2, "the job was over too soon"
            killed = replicas()[0]
            home = killed.ppid()
            killed.kill()
        elif gone is None and rows >= ROWS / 3:
            assert rows < ROWS / 1.5, "the job was over too soon"
            (other,) = {process.ppid() for process in replicas()} - {home}
            gone = raylets[other]
            cluster.remove_node(gone, allow_graceful=False)
            cluster.add_node(**NODE)
    assert killed is not None
    assert gone is not None
    check_vectors(pa.concat_tables(parts), vectors_of(embedder, ROWS))


def test_example(cluster, embedder, tmp_path, monkeypatch):
    source, target = tmp_path / "in.parquet", tmp_path / "out"
    pq.write_table(pa.table({"id": range(20), "text": list(map(text, range(20)))}), source)
    monkeypatch.setattr("sys.argv", ["ray_embed", str(source), str(target), "--model", str(embedder)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    check_vectors(pq.read_table(target), vectors_of(embedder, 20))


def test_what_is_wrong_with_columns_is_said_before_an_actor_starts(cluster):
    ds = ray.data.from_items([{"body": "a", "embedding": 1}])
    with pytest.raises(ValueError, match=r"column 'text' is not there, expected one of \['body', 'embedding'\]"):
        embed_dataset(ds, "no such model")
    with pytest.raises(ValueError, match="column 'embedding' is there already: rename or drop it, or give output="):
        embed_dataset(ds, "no such model", column="body")
    with pytest.raises(ValueError, match=r"llm_arguments: \['task'\]"):
        embed_dataset(ds, "no such model", column="body", output="v", llm_arguments={"task": "score"})
    with pytest.raises(TypeError, match=r"got list; see ray.data.from_items"):
        embed_dataset(["a"], "no such model")


def test_a_null_ends_the_job_and_is_named(cluster, embedder):
    ds = ray.data.from_items([{"id": 7, "text": "a"}, {"id": 8, "text": None}])
    with pytest.raises(
        Exception, match=r"column 'text', row 1 of a batch of 2, .*'id': 8.*: expected a text, got null"
    ):
        embed_dataset(ds, embedder).materialize()


def test_a_column_known_too_late_and_no_rows(cluster, embedder):
    ds = ray.data.range(4).map_batches(lambda batch: {"id": batch["id"], "body": ["a"] * len(batch["id"])})
    with pytest.raises(Exception, match="column 'text' is not there"):
        embed_dataset(ds, embedder).materialize()
    assert embed_dataset(ds.filter(lambda row: row["id"] > 9), embedder, column="body").count() == 0


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxpool\[ray\]'"):
        embed_dataset(None, "no such model")


@pytest.mark.parametrize(
    ("work", "columns", "kind"),
    [
        (tables.Embedding("text", "out"), {"text": pa.string()}, pa.list_(pa.float32(), 32)),
        (tables.Scoring("text", "other", "out"), {"text": pa.string(), "other": pa.string()}, pa.float32()),
        (
            tables.Reranking("text", "others", "out"),
            {"text": pa.string(), "others": pa.list_(pa.string())},
            pa.list_(pa.struct([("index", pa.int32()), ("score", pa.float32())])),
        ),
    ],
)
def test_no_rows_have_the_same_types(embedder, work, columns, kind):
    with LLM(embedder, task=work.task) as llm:
        table = tables.add_answers(llm, work, pa.schema(list(columns.items())).empty_table())
    assert table.column_names == [*columns, "out"]
    assert table.schema.field("out").type == kind


def test_no_rows_to_classify(scorer):
    with LLM(scorer, task="classify") as llm:
        work = tables.Classification("text", "out")
        table = tables.add_answers(llm, work, pa.schema([("text", pa.string())]).empty_table())
    assert table.schema.field("out").type == pa.list_(pa.float32(), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "a", "documents": None},
            "column 'documents', row 1 of a batch of 2.* expected a list of texts, got null",
        ),
        ({"query": "a", "documents": ["a", None]}, r"column 'documents'\[1\], row 1 of .*'query': 'a'.* got null"),
        ({"query": None, "documents": []}, "column 'query', row 1 of a batch of 2.* expected a text, got null"),
    ],
)
def test_rows_to_rerank_that_are_wrong(embedder, row, message):
    table = pa.Table.from_pylist([{"query": "a", "documents": ["b"]}, row])
    with LLM(embedder) as llm, pytest.raises(ValueError, match=message):
        tables.add_answers(llm, tables.Reranking("query", "documents", "ranking"), table)


def test_numbers_are_no_texts(embedder):
    with LLM(embedder) as llm, pytest.raises(ValueError, match="column 'text', row 0 of .*: expected a text, got 3"):
        tables.add_answers(llm, tables.Embedding("text", "out"), pa.table({"text": [3]}))


def test_top_n_is_checked_before_the_work():
    with pytest.raises(ValueError, match="top_n is 0"):
        tables.Reranking("query", "documents", "ranking", top_n=0)
