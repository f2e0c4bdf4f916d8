"""Jobs over several files into a directory of shards: what is read, skipped, refused, written and said."""

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpool import LLM
from jaxpool.cli import main
from jaxpool.corpus import chunk, command, report, shards, writing
from jaxpool.corpus.chunk import BadRow, Chunk, Feed
from jaxpool.corpus.embedding import Embedder
from jaxpool.corpus.files import open_files
from jaxpool.corpus.fingerprint import differences
from jaxpool.corpus.shards import Settings, open_directory, prepare_shards
from jaxpool.corpus.sources import expand
from jaxpool.corpus.stopping import Preempted, Stop
from tests.job_fakes import WIDTH, FakeLLM
from tests.job_fakes import run as run_fake
from tests.test_job_kills import contents
from tests.tiny import tiny_bert


@pytest.fixture
def fake(monkeypatch):
    """Jobs by a fake model."""
    monkeypatch.setattr(shards, "fingerprint", lambda llm: {"model_files": {"weights": "fake"}})
    return run_fake


@pytest.fixture
def fake_main(fake, monkeypatch):
    """The command line with a fake model."""
    monkeypatch.setattr(command, "_open_model", lambda args: nullcontext(FakeLLM()))
    return lambda *arguments: main(["embed", "fake", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"), positions=16, layers=1, prompts={"query": "query: "})


def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


def read_texts(*inputs, **options):
    files = open_files([str(one) for one in inputs], **options)
    return [text for part in files.chunks(files.survey()) for text in part.texts]


def manifest_of(output):
    return json.loads((Path(output) / "manifest.json").read_text())


def write_texts(path, count, form="text {}"):
    path.write_text("".join(form.format(i) + "\n" for i in range(count)))
    return path


# Which files


@pytest.fixture
def tree(tmp_path):
    files = ("b.txt", "a.txt", "c/d.jsonl", "c/e/f.txt.gz", ".hidden.txt", "_SUCCESS", "_tmp/g.txt", "README.md")
    for name in files:
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(b"x\n") if name.endswith(".gz") else b'{"text": "x"}\n')
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (["a.txt"], ["a.txt"]),
        (["b.txt", "a.txt"], ["b.txt", "a.txt"]),
        (["*.txt"], ["a.txt", "b.txt"]),
        (["**/*.txt*"], ["_tmp/g.txt", "a.txt", "b.txt", "c/e/f.txt.gz"]),
        (["."], ["a.txt", "b.txt", "c/d.jsonl", "c/e/f.txt.gz"]),
        (["c", "?.txt"], ["c/d.jsonl", "c/e/f.txt.gz", "a.txt", "b.txt"]),
    ],
)
def test_files_globs_and_directories(tree, monkeypatch, inputs, found):
    monkeypatch.chdir(tree)
    assert [source.name for source in expand(inputs)] == found
    memory = fsspec.filesystem("memory")
    if memory.exists("/tree"):
        memory.rm("/tree", recursive=True)
    for path in tree.rglob("*"):
        if path.is_file():
            memory.pipe(f"/tree/{path.relative_to(tree)}", path.read_bytes())
    urls = [f"memory://tree/{one}".removesuffix("/.") for one in inputs]
    assert [source.name.split("tree/")[1] for source in expand(urls)] == found
    assert len(read_texts(*urls)) == len(found)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (["*.csv"], FileNotFoundError, r"input \*\.csv: there is no \.txt"),
        (["empty"], FileNotFoundError, "input empty: there is no .txt"),
        (["*"], ValueError, r"input README.md: the suffix is '\.md'"),
        (["a.txt", "*.txt"], ValueError, "input a.txt: given twice"),
        (["none.txt"], FileNotFoundError, "input none.txt: there is no such file"),
        (["memory://tree/none.txt"], FileNotFoundError, "input memory://tree/none.txt: there is no such file"),
        (["nonsense://a.txt"], ValueError, "input nonsense://a.txt: Protocol not known"),
        (["x.parquet.gz"], ValueError, r"\.parquet is compressed inside"),
    ],
)
def test_files_that_cannot_be_meant(tree, monkeypatch, inputs, error, message):
    monkeypatch.chdir(tree)
    (tree / "empty").mkdir()
    (tree / "x.parquet.gz").touch()
    if inputs == ["*"]:
        (tree / "x.parquet.gz").unlink()
    with pytest.raises(error, match=message):
        expand(inputs)


def test_fsspec_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"input memory://a.txt: URLs need fsspec .*pip install 'jaxpool\[data\]'"):
        expand(["memory://a.txt"])


def test_a_job_over_urls_is_resumed_where_they_are_unchanged(tmp_path, fake):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/job/{number}.jsonl", b"".join(b'{"text": "%d-%d"}\n' % (number, i) for i in range(10)))
    fake(["memory://job/"], str(tmp_path / "out"), shard_rows=7)
    assert manifest_of(tmp_path / "out")["totals"]["vectors"] == 30
    assert fake(["memory://job/"], str(tmp_path / "out"), shard_rows=7, resume=True) == ""
    memory.pipe("/job/1.jsonl", memory.cat("/job/1.jsonl"))  # written again, the same
    assert fake(["memory://job/"], str(tmp_path / "out"), shard_rows=7, resume=True) == ""
    memory.pipe("/job/1.jsonl", memory.cat("/job/1.jsonl").replace(b"1-3", b"1-x"))
    with pytest.raises(ValueError, match=r"inputs.memory:///job/1.jsonl.sha256: '\w+' then, '\w+' now"):
        fake(["memory://job/"], str(tmp_path / "out"), shard_rows=7, resume=True)


# Compressed files


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gz", "zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_compressed_files(tmp_path, pack, kind):
    lines = [f"text {i}" if kind == ".txt" else json.dumps({"text": f"text {i}"}) for i in range(5000)]
    content = "".join(line + "\n" for line in lines).encode()
    file = tmp_path / f"in{kind}.{'gz' if pack is gzip.compress else 'zst'}"
    file.write_bytes(pack(content))
    assert read_texts(file) == [f"text {i}" for i in range(5000)]
    file.write_bytes(pack(content[:1000]) + pack(content[1000:]))  # as parallel compressors write it
    assert read_texts(file) == [f"text {i}" for i in range(5000)]
    for broken in (pack(content)[:-40], pack(content)[: len(pack(content)) // 2], b"none at all", pack(content) + b"x"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"in{kind}.(gz|zst): not a whole .(gz|zst) file"):
            read_texts(file)
        with pytest.raises(ValueError, match="not a whole"):
            read_texts(file, skip=True)  # no row is at fault


# Chunks


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("take", [1, 5, 17, 1000])
def test_what_a_feed_gives_does_not_depend_on_how_the_rows_came(monkeypatch, size, take):
    monkeypatch.setattr(chunk, "CHUNK", 4)
    bad = {3, 4, 5, 6, 7, 20, 29}

    def chunks(size):
        for first in range(1, 31, size):
            rows = range(first, min(first + size, 31))
            texts = [str(row) for row in rows if row not in bad]
            columns = pa.record_batch({"n": pa.array([int(text) for text in texts], pa.int64())})
            yield Chunk(texts, columns, tuple(BadRow("in", row, "") for row in rows if row in bad), first)

    def taken(size):
        feed, stretches = Feed(chunks(size)), []
        while stretch := list(feed.take(take)):
            stretches.append(stretch)
        return stretches

    found = taken(size)
    assert found == taken(2)
    assert [sum(part.rows for part in stretch) for stretch in found[:-1]] == [take] * (len(found) - 1)
    assert all(part.rows == 4 for stretch in found for part in stretch[:-1])
    parts = [part for stretch in found for part in stretch]
    assert [text for part in parts for text in part.texts] == [str(i) for i in range(1, 31) if i not in bad]
    assert [row.row for part in parts for row in part.bad] == sorted(bad)
    assert all([str(n) for n in part.columns["n"].to_pylist()] == part.texts for part in parts)


# Several files


def test_files_of_several_kinds_go_into_one(tmp_path, fake):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": null, "tags": ["x"]}\n')
    pq.write_table(pa.table({"n": [2.5], "text": pa.array(["three"], pa.large_string())}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("four\n")
    (tmp_path / "d.txt").write_text("")
    inputs = [str(tmp_path / name) for name in ("a.jsonl", "b.parquet", "c.txt", "d.txt")]
    fake(inputs, str(tmp_path / "out"), shard_rows=3)
    table = pq.read_table(tmp_path / "out" / "shards")
    assert table.drop(["embedding"]).to_pydict() == {
        "text": ["one", "two", "three", "four"],
        "n": [1.0, None, 2.5, None],
        "tags": [None, ["x"], None, None],
    }
    assert [one["rows"] for one in manifest_of(tmp_path / "out")["inputs"]] == [2, 1, 1, 0]
    fake(inputs, str(tmp_path / "npy"), format="npy")
    assert np.load(tmp_path / "npy" / "shards" / "000000.npy", mmap_mode="r").shape == (4, WIDTH)


def test_columns_that_cannot_stand_together_name_the_file(tmp_path, fake):
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "n": ["two"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet: column 'n' is of type string, which cannot .* the int64"):
        fake([str(tmp_path)], str(tmp_path.parent / "out1"))
    fake([str(tmp_path / "*.parquet")], str(tmp_path / "out"), format="npy")  # where no columns are kept, none clash


def test_several_files_into_one_file(tmp_path, model, capsys):
    write_texts(tmp_path / "a.txt", 3)
    (tmp_path / "b.txt.zst").write_bytes(zstd(b"five\nsix\n"))
    assert main(["embed", str(model), str(tmp_path / "*.txt*"), "-o", str(tmp_path / "out.npy")]) == 0
    with LLM(model) as llm:
        expected = llm.embed_array(["text 0", "text 1", "text 2", "five", "six"])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-6)


def test_no_rows_at_all(tmp_path, fake):
    (tmp_path / "in.txt").touch()
    fake([str(tmp_path / "in.txt")], str(tmp_path / "out"))
    assert manifest_of(tmp_path / "out")["state"] == "complete"
    assert pq.read_table(tmp_path / "out" / "shards").column_names == ["text", "embedding"]


# Rows that cannot be read


def test_bad_rows_are_skipped_and_listed(tmp_path, fake):
    good = {"text": "fine", "n": 1}
    lines = [good, {"n": 1}, good, {"text": None}, {"text": "x", "n": "one"}, good, {"text": "\ud83d"}]
    texts = [json.dumps(line) for line in lines]
    (tmp_path / "a.jsonl").write_bytes("\n".join([*texts[:3], "{", *texts[3:]]).encode() + b'\n{"text": "caf\xe9"}\n')
    strings = pa.Array.from_buffers(  # the third value is no UTF-8
        pa.string(), 4, [None, pa.py_buffer(np.array([0, 1, 2, 4, 5], np.int32)), pa.py_buffer(b"ab\xff\xfed")]
    )
    table = pa.table({"text": pa.concat_arrays([strings, pa.array([None, "e"], pa.string())]), "n": range(6)})
    pq.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(b"one\n\xff\xfe\nthree\n")
    inputs = [str(tmp_path / name) for name in ("a.jsonl", "b.parquet", "c.txt")]
    fake(inputs, str(tmp_path / "out"), on_error="skip", shard_rows=5)
    manifest = manifest_of(tmp_path / "out")
    skipped = [(Path(row["input"]).name, row["row"], row["reason"]) for s in manifest["shards"] for row in s["skipped"]]
    assert [row[:2] for row in skipped] == [
        *[("a.jsonl", row) for row in (2, 4, 5, 6, 8, 9)],
        ("b.parquet", 3),
        ("b.parquet", 5),
        ("c.txt", 2),
    ]
    for (_, _, reason), part in zip(
        skipped,
        ("no column 'text'", "not valid JSON", "got None", "'n': ", "lone surrogate", "byte 0xe9", "is not valid UTF-8",
         "is null", "not valid UTF-8 (byte 0xff at 0)"),
        strict=True,
    ):  # fmt: skip
        assert part in reason
    assert manifest["totals"] == manifest["totals"] | {"rows": 18, "vectors": 9, "skipped_rows": 9}
    assert [(s["rows"], s["vectors"]) for s in manifest["shards"]] == [(5, 2), (5, 2), (5, 3), (3, 2)]
    found = pq.read_table(tmp_path / "out" / "shards")
    assert found["text"].to_pylist() == ["fine"] * 3 + ["a", "b", "d", "e", "one", "three"]
    assert found["n"].to_pylist() == [1, 1, 1, 0, 1, 3, 5, None, None]
    npy = str(tmp_path / "npy")
    fake(inputs, npy, on_error="skip", shard_rows=4, format="npy")
    assert manifest_of(npy)["totals"]["vectors"] == 10  # 'n' is no column there, so it cannot be wrong
    for number, row in enumerate((2, 3, 2)):
        with pytest.raises(ValueError, match=rf"{Path(inputs[number]).name}:{row}: "):
            fake([inputs[number]], str(tmp_path / "stopped"))
    assert not (tmp_path / "stopped").exists()


def test_an_empty_text_that_has_no_token(tmp_path, fake):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{}\n{"text": ""}\n{"text": "b"}\n')
    bare = FakeLLM()
    bare.special_count = 0
    run = lambda name, llm, **more: fake([str(tmp_path / "in.jsonl")], str(tmp_path / name), llm=llm, **more)  # noqa: E731
    run("skipped", bare, on_error="skip")
    (shard,) = manifest_of(tmp_path / "skipped")["shards"]
    assert [row["row"] for row in shard["skipped"]] == [2, 3]
    assert "the text is empty" in shard["skipped"][1]["reason"]
    run("prompted", bare, on_error="skip", prompt="query: ")
    run("special", FakeLLM(), on_error="skip")
    assert [manifest_of(tmp_path / n)["totals"]["skipped_rows"] for n in ("prompted", "special")] == [1, 1]
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    with pytest.raises(ValueError, match=r"in.jsonl:2: the text is empty"):
        run("stopped", bare)


# Refusals


@pytest.fixture
def begun(tmp_path, fake):
    """A job of which one shard is missing."""
    write_texts(tmp_path / "in.txt", 50)
    fake([str(tmp_path / "in.txt")], str(tmp_path / "out"), shard_rows=20)
    (tmp_path / "out" / "shards" / "000001.parquet").unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "body"}, "arguments.column: 'text' then, 'body' now"),
        ({"prompt": "query: "}, "arguments.prompt: None then, 'query: ' now"),
        ({"prompt_name": "query"}, "arguments.prompt_name: None then, 'query' now"),
        ({"shard_rows": 30}, "arguments.shard_rows: 20 then, 30 now"),
        ({"format": "npy"}, "arguments.format: 'parquet' then, 'npy' now"),
        ({"on_error": "skip"}, "arguments.on_error: 'stop' then, 'skip' now"),
        ({"deterministic": True}, "arguments.deterministic: False then, True now"),
    ],
)
def test_other_arguments_are_refused(begun, fake, change, message):
    before = contents(begun / "out")
    with pytest.raises(ValueError, match="was begun otherwise") as error:
        fake([str(begun / "in.txt")], str(begun / "out"), resume=True, **{"shard_rows": 20} | change)
    assert message in str(error.value)
    assert contents(begun / "out") == before


def test_other_inputs_are_refused(begun, fake):
    again = lambda *inputs: fake([str(begun / one) for one in inputs], str(begun / "out"), resume=True, shard_rows=20)  # noqa: E731
    write_texts(begun / "more.txt", 1)
    with pytest.raises(ValueError, match=r"inputs.1: 'nothing' then, '.*more.txt' now"):
        again("in.txt", "more.txt")
    with pytest.raises(ValueError, match=r"inputs.0: '.*/in.txt' then, '.*/more.txt' now"):
        again("more.txt")
    old = (begun / "in.txt").read_text()
    (begun / "in.txt").write_text(old + "one more\n")
    with pytest.raises(ValueError, match=r"in.txt.bytes: \d+ then, \d+ now"):
        again("in.txt")
    (begun / "in.txt").write_text(old.replace("text 7", "text X"))
    with pytest.raises(ValueError, match=r"in.txt.sha256: '\w+' then, '\w+' now"):
        again("in.txt")
    (begun / "in.txt").write_text(old)  # written again, the same
    again("in.txt")
    assert manifest_of(begun / "out")["state"] == "complete"


def test_another_model_is_refused(tmp_path, model, capsys):
    write_texts(tmp_path / "in.txt", 5)
    other = tiny_bert(tmp_path / "other", positions=16, layers=1, seed=1)
    cls = tiny_bert(tmp_path / "cls", positions=16, layers=1, pooling="cls")
    run = lambda name, *more: main(["embed", str(name), str(tmp_path / "in.txt"), "-o", f"{tmp_path}/out/", *more])  # noqa: E731
    assert run(model, "--resume") == 0  # begins where nothing is
    before = contents(tmp_path / "out")
    assert run(model, "--resume") == 0
    assert "nothing is left to do" in capsys.readouterr().out
    (tmp_path / "out" / "shards" / "000000.parquet").unlink()
    for name, more, message in (
        (other, (), "model_files.model.safetensors: '"),
        (cls, (), "recipe.pooling: ['mean'] then, ['cls'] now"),
        (model, ("--dtype", "bfloat16"), "dtype: 'float32' then, 'bfloat16' now"),
        (model, ("--max-model-len", "8"), "recipe.max_length: 16 then, 8 now"),
        (model, ("--max-num-batched-tokens", "64"), "batch_tokens: 512 then, 64 now"),
    ):
        assert run(name, "--resume", *more) == 2
        err = capsys.readouterr().err
        assert "was begun otherwise" in err
        assert message in err
    assert run(model) == 2
    assert "there is a job already, complete, of 5 rows; --resume goes on with it" in capsys.readouterr().err
    copy = shutil.copytree(model, tmp_path / "copy")  # the same files elsewhere are the same model
    assert run(copy, "--resume") == 0
    assert contents(tmp_path / "out") == before


def test_other_versions_are_differences():
    then = {"versions": {"jax": "1", "jaxlib": "1"}, "machine": {"device": "TPU v4"}}
    assert differences(then, json.loads(json.dumps(then))) == []
    now = {"versions": {"jax": "2", "jaxlib": "1"}, "machine": {"device": "TPU v5"}, "more": 1}
    assert differences(then, now) == [
        "versions.jax: '1' then, '2' now",
        "machine.device: 'TPU v4' then, 'TPU v5' now",
        "more: 'nothing' then, 1 now",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.txt", "-o", "none/out/"], "output none/out: there is no directory none"),
        (["in.txt", "-o", "in.txt/"], "output in.txt: is a file, not a directory"),
        (["in.txt", "-o", "full/"], "output full: there is no manifest.json in it, but file; give an empty directory"),
        (["in.txt", "-o", "foreign/"], "foreign/manifest.json is no manifest of jaxpool's"),
        (["in.txt", "-o", "newer/", "--resume"], "newer/manifest.json is of version 99, this jaxpool reads 1"),
        (["full", "-o", "full/out/"], "output full/out lies in the input full"),
        (["in.txt", "-o", "out/", "--shard-rows", "0"], "--shard-rows is 0, expected at least 1"),
        (["in.txt", "-o", "out.npy", "--resume", "--shard-rows", "3"], "--shard-rows, --resume: only with a directory"),
        (["in.txt", "-o", "s3://bucket/out/"], "output s3://bucket/out/: is a URL"),
        (["bad.txt", "-o", "out/"], "bad.txt:1: not valid UTF-8"),
        (["in.txt", "-o", "out/", "--prompt-name", "passage"], "prompt_name is 'passage'"),
    ],
)
def test_errors_leave_nothing_behind(tmp_path, model, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "in.txt", 3)
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    for name in ("full", "foreign", "newer"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    write_texts(tmp_path / "full" / "in.txt", 3)
    (tmp_path / "foreign" / "manifest.json").write_text("[]")
    (tmp_path / "newer" / "manifest.json").write_text('{"jaxpool_manifest": 99}')
    before = contents(tmp_path)
    assert main(["embed", str(model), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxpool: error: {message}")
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_write_to_one_directory(tmp_path, fake):
    write_texts(tmp_path / "in.txt", 3)
    _, directory = open_directory([str(tmp_path / "in.txt")], tmp_path / "out", Settings())
    with directory.locked(), pytest.raises(ValueError, match="another run is writing there"):
        fake([str(tmp_path / "in.txt")], str(tmp_path / "out"))


def test_an_input_that_changes_under_way(tmp_path, fake):
    file = write_texts(tmp_path / "in.txt", 3000)
    settings = Settings(shard_rows=1000)
    files, directory = open_directory([str(file)], tmp_path / "out", settings)
    with directory.locked():
        job = prepare_shards(files, directory, settings)
        write_texts(file, 2500)
        with pytest.raises(ValueError, match=r"in.txt: changed while it was read: 3,000 rows at first, now 2,500"):
            job.run(Embedder(FakeLLM()), Stop(20))


# Full disks and signals


def test_a_full_disk(tmp_path, fake_main, capsys, monkeypatch):
    arguments = [write_texts(tmp_path / "in.txt", 50), "--shard-rows", 20, "-o"]
    assert fake_main(*arguments, f"{tmp_path}/whole/") == 0
    capsys.readouterr()
    writers, calls = dict(writing.WRITERS), []

    def full(path, width, schema):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return writers[".parquet"](path, width, schema)

    monkeypatch.setitem(writing.WRITERS, ".parquet", full)
    assert fake_main(*arguments, f"{tmp_path}/out/") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"jaxpool: error: output {tmp_path}/out: the disk is full (No space left on device)")
    assert "--resume goes on" in err
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "records/000000.json", "shards/000000.parquet"]
    assert fake_main(*arguments, f"{tmp_path}/out/", "--resume") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_ctrl_c(tmp_path, fake_main, capsys, monkeypatch):
    arguments = [write_texts(tmp_path / "in.txt", 50), "--shard-rows", 20, "--format", "npy", "-o"]
    assert fake_main(*arguments, f"{tmp_path}/whole/") == 0
    stream, calls = FakeLLM.embed_stream, []

    def interrupted(self, texts, **more):
        calls.append(1)
        for number, vector in enumerate(stream(self, texts, **more)):
            if len(calls) == 2 and number == 10:
                raise KeyboardInterrupt
            yield vector

    monkeypatch.setattr(FakeLLM, "embed_stream", interrupted)
    capsys.readouterr()
    assert fake_main(*arguments, f"{tmp_path}/out/") == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr(FakeLLM, "embed_stream", stream)
    assert [file.name for file in (tmp_path / "out" / "shards").iterdir()] == ["000000.npy"]
    assert fake_main(*arguments, f"{tmp_path}/out/", "--resume") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    shapes = [np.load(file, mmap_mode="r").shape for file in sorted((tmp_path / "out" / "shards").iterdir())]
    assert shapes == [(20, WIDTH), (20, WIDTH), (10, WIDTH)]


@pytest.mark.parametrize(("grace", "whole"), [(20, 2), (0, 1)])
def test_sigterm_finishes_what_there_is_time_for(tmp_path, fake, grace, whole):
    write_texts(tmp_path / "in.txt", 4000)
    fake([str(tmp_path / "in.txt")], str(tmp_path / "whole"), shard_rows=1000)

    pauses = []

    def pause():
        pauses.append(1)
        if len(pauses) == 5:  # in the second shard
            os.kill(os.getpid(), signal.SIGTERM)

    settings, stop = Settings(shard_rows=1000), Stop(grace)
    files, directory = open_directory([str(tmp_path / "in.txt")], tmp_path / "out", settings)
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening(), directory.locked():
        line = prepare_shards(files, directory, settings).run(Embedder(FakeLLM(pause)), stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"stopped, {4000 - 1000 * whole:,} of 4,000 rows remain" in line
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["state"], len(manifest["shards"])) == ("incomplete", whole)
    fake([str(tmp_path / "in.txt")], str(tmp_path / "out"), shard_rows=1000, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sigterm_before_anything_and_twice():
    stop = Stop(1000)
    with stop.listening():
        with pytest.raises(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
        stop = Stop(1000)
    with stop.listening(), stop.working():
        stop.check(10, 0.0)  # nobody asked
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check(10, 1.0)  # there is time
        with pytest.raises(Preempted):
            stop.check(10_000, 1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted):
            stop.check(1, 1e9)


# What is said


def test_log_json(tmp_path, fake_main, capsys, monkeypatch):
    monkeypatch.setattr(report, "INTERVAL", 0.0)
    file = write_texts(tmp_path / "in.txt", 50)
    arguments = [file, "--shard-rows", 20, "-o", f"{tmp_path}/out/"]
    assert fake_main(*arguments, "--log-json") == 0
    out, err = capsys.readouterr()
    assert out.startswith("50 texts, ")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines if line["event"] != "progress"] == ["start", *["shard"] * 3, "done"]
    progress = [line for line in lines if line["event"] == "progress"]
    assert [line["rows"] for line in progress] == list(range(1, 51))
    for line in progress:
        assert line["rows_total"] == 50
        assert line["texts_per_second"] > 0
        assert line["tokens_per_second"] > 0
        assert 0 <= line["padding_share"] < 1
        assert line["seconds_left"] >= 0
    assert [line["shard"] for line in lines if line["event"] == "shard"] == [0, 1, 2]
    assert lines[-1]["vectors"] == 50
    assert fake_main(*arguments, "--resume", "--log-json", tmp_path / "log") == 0
    assert json.loads((tmp_path / "log").read_text()) == {"event": "done", "output": f"{tmp_path}/out", "rows_left": 0}
    assert capsys.readouterr().err == ""
    assert fake_main(file, "-o", f"{tmp_path}/out.npy", "--log-json") == 0
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "done"


# Memory

PEAK = """
import sys
from pathlib import Path
from tests.job_fakes import run, use_fake_fingerprint
use_fake_fingerprint()
run([sys.argv[1]], sys.argv[2], shard_rows=10_000)
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path, kind):
    peaks = []
    for rows in (20_000, 160_000):
        file = tmp_path / f"{rows}.{kind}"
        if kind == "jsonl":
            with file.open("w") as out:
                out.writelines(f'{{"id": {i}, "text": "{i} {"word " * 100}"}}\n' for i in range(rows))
        else:  # in one row group, which must not be held as a whole
            table = pa.table({"id": range(rows), "text": [f"{i} {os.urandom(250).hex()}" for i in range(rows)]})
            pq.write_table(table, file, row_group_size=rows, use_dictionary=False)
        assert file.stat().st_size > 250 * rows
        done = subprocess.run(
            [sys.executable, "-c", PEAK, file, tmp_path / f"out{rows}"], check=True, capture_output=True, text=True
        )
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 40, peaks  # the input grew by 70 to 80 MB; allocators vary by 20
