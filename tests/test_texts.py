"""Files of texts in, files of embeddings out: what is read, what is refused, what is written."""

import json
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpool import LLM
from jaxpool.corpus import arrow, chunk, writing
from jaxpool.corpus.chunk import Chunk
from jaxpool.corpus.embedding import Embedder, with_vectors
from jaxpool.corpus.job import prepare
from jaxpool.corpus.reading import open_corpus
from jaxpool.corpus.writing import open_output
from jaxpool.whole import whole_directory, whole_file
from tests.nasty import NASTY
from tests.tiny import tiny_bert

TEXTS = ["the fox", "", "a lazy dog, sing!", *(f"seven small birds {i}" for i in range(20)), "the fox", "café " * 90]


def read_all(path, column="text"):
    """All texts, a few at a time, and their number by the survey."""
    corpus = open_corpus(path, column)
    texts = [text for chunk in corpus.chunks() for text in chunk.texts]
    assert corpus.survey().rows == len(texts)
    return texts


def read_rows(path, column="text"):
    """All rows with all columns, as a table."""
    corpus = open_corpus(path, column)
    schema = corpus.survey(columns=True).schema
    return pa.Table.from_batches([chunk.columns for chunk in corpus.chunks(schema)], schema)


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=[3, 1024])
def chunk_size(request, monkeypatch):
    monkeypatch.setattr(chunk, "CHUNK", request.param)


# .txt


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\n two \r\n", ["one", " two "]),
        (b"\none\n\n\ntwo\n\n", ["", "one", "", "", "two", ""]),
        (b"\xef\xbb\xbfone\ntwo", ["one", "two"]),
        ("one\u2028still one\x0cand\x85on\ntwo".encode(), ["one\u2028still one\x0cand\x85on", "two"]),
    ],
)
def test_txt(tmp_path, content, texts, chunk_size):
    file = tmp_path / "in.txt"
    file.write_bytes(content)
    assert read_all(file) == texts
    assert read_rows(file).to_pydict() == {"text": texts}


def test_txt_that_is_no_utf8(tmp_path, chunk_size):
    file = tmp_path / "in.txt"
    file.write_bytes(b"fine\n" * 4 + b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"in\.txt:5: not valid UTF-8 \(byte 0xe9 at 3\)"):
        read_all(file)


# .jsonl


def test_jsonl(tmp_path, chunk_size):
    rows = [{"text": text, "body": f"{i}", "id": i} for i, text in enumerate(NASTY)]
    file = write_lines(tmp_path / "in.jsonl", *rows)
    assert read_all(file) == list(NASTY)
    assert read_all(file, "body") == [str(i) for i in range(len(NASTY))]
    assert read_rows(file).to_pylist() == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not valid JSON"),
        ('{"text": "x"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["text"]', r"expected an object, got \[\"text\"\]"),
        ("null", "expected an object"),
        ('{"body": "x"}', r"no column 'text', only \['body'\]; --column"),
        ('{"text": 3}', "column 'text': expected a text, got int 3"),
        ('{"text": null}', "column 'text': expected a text, got None"),
        ('{"text": "\\ud83d"}', "column 'text': not valid Unicode"),
    ],
    ids=range(9),
)
def test_jsonl_that_is_broken(tmp_path, line, message, chunk_size):
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "fine"}\n' * 4 + line + "\n" + '{"text": "fine"}\n')
    with pytest.raises(ValueError, match=rf"in\.jsonl:5: {message}"):
        open_corpus(file).survey()


def test_jsonl_columns_are_unified_over_all_lines(tmp_path, chunk_size):
    rows = [
        {"text": "a", "n": None, "tags": []},
        {"text": "b", "n": 1, "tags": ["x"]},
        {"text": "c"},
        {"text": "d", "n": 2.5, "meta": {"a": 1}},
        {"text": "e", "n": 3, "meta": {"b": "y"}},
    ]
    table = read_rows(write_lines(tmp_path / "in.jsonl", *rows))
    assert table.schema.field("n").type == pa.float64()
    assert table.schema.field("tags").type == pa.list_(pa.string())
    assert table.to_pydict() == {
        "text": list("abcde"),
        "n": [None, 1.0, None, 2.5, 3.0],
        "tags": [[], ["x"], None, None, None],
        "meta": [None, None, None, {"a": 1, "b": None}, {"a": None, "b": "y"}],
    }


@pytest.mark.parametrize(
    "wrong", [{"n": "two"}, {"n": [2]}, {"n": {"a": 2}}, {"n": True}, {"n": 2**70}, {"n": "\ud83d"}], ids=str
)
@pytest.mark.parametrize("line", [2, 5])
def test_jsonl_values_of_two_types_name_the_line(tmp_path, wrong, line, chunk_size):
    rows = [{"text": "fine", "n": 1} for _ in range(6)]
    rows[line - 1] |= wrong
    file = write_lines(tmp_path / "in.jsonl", *rows)
    assert len(read_all(file)) == 6  # without its columns the file is fine
    with pytest.raises(ValueError, match=rf"in\.jsonl:{line}: 'n' is .* cannot stand in one column"):
        open_corpus(file).survey(columns=True)


def test_jsonl_ints_that_are_no_floats(tmp_path):
    file = write_lines(tmp_path / "in.jsonl", {"text": "a", "n": 0.5}, {"text": "b", "n": 2**60 + 1})
    schema = pa.schema([("text", pa.string()), ("n", pa.float64())])
    with pytest.raises(ValueError, match=r"in\.jsonl:2: 'n': .*1152921504606846977"):
        list(open_corpus(file).chunks(schema))


# .parquet


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_parquet(tmp_path, kind, chunk_size):
    file = tmp_path / "in.parquet"
    table = pa.table({"id": range(len(NASTY)), "text": pa.array(NASTY, pa.string()).cast(kind)})
    pq.write_table(table, file, row_group_size=5)
    assert read_all(file) == list(NASTY)
    assert read_rows(file).to_pylist() == table.to_pylist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["x"]}, r"expected one column 'text', the columns are \['body'\]; --column"),
        ({"text": [1, 2]}, "column 'text' is of type int64, expected string"),
        ({"text": [b"x"]}, "column 'text' is of type binary, expected string"),
        ({"text": [["x"]]}, "column 'text' is of type list"),
        ({"text": ["x"] * 6 + [None, "y"]}, ":7: column 'text' is null"),
    ],
)
def test_parquet_that_holds_no_texts(tmp_path, columns, message, chunk_size):
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(ValueError, match=rf"in\.parquet:? ?{message}"):
        open_corpus(file).survey()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", None])
def test_parquet_that_is_none(tmp_path, content):
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["x"] * 1000}), file)
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=r"in\.parquet: not a whole \.parquet file"):
        open_corpus(file).survey()


# Either


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"suffix is '\.csv', expected one of \.txt, \.jsonl, \.parquet"):
        open_corpus(tmp_path / "in.csv")
    with pytest.raises(FileNotFoundError, match=r"input .*in\.txt: there is no such file"):
        open_corpus(tmp_path / "in.txt")


def test_pyarrow_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("one\n")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "in.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert read_all(tmp_path / "in.txt") == ["one"]
    assert prepare([tmp_path / "in.txt"], tmp_path / "out.npy").survey.rows == 1
    for source, output in (("in.parquet", "out.npy"), ("in.txt", "out.parquet")):
        with pytest.raises(ImportError, match=r"pip install 'jaxpool\[data\]'"):
            prepare([tmp_path / source], tmp_path / output)


# Out


def write_output(path, vectors, table=None, chunk=4):
    schema = None if table is None else table.schema
    with open_output(path, vectors.shape[1], schema) as write:
        for i in range(0, len(vectors), chunk):
            part = vectors[i : i + chunk]
            columns = None if table is None else table.slice(i, chunk).combine_chunks().to_batches()[0]
            write(Chunk(["x"] * len(part), columns), part)


@pytest.mark.parametrize("rows", [0, 1, 13])
def test_npy(tmp_path, rows):
    vectors = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float32)
    write_output(tmp_path / "out.npy", vectors)
    for mode in (None, "r"):
        read = np.load(tmp_path / "out.npy", mmap_mode=mode if rows else None)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, vectors)


@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.parametrize("group", [1, 100, 2**20])
def test_parquet_out(tmp_path, rows, group, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", group)
    vectors = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float32)
    fields = [pa.field("text", pa.string(), nullable=False), pa.field("tags", pa.list_(pa.int8()))]
    schema = pa.schema(fields, metadata={"origin": "here"})
    table = pa.table([["é"] * rows, [[1, 2], None, []][:1] * rows], schema)
    write_output(tmp_path / "out.parquet", vectors, table)
    read = pq.read_table(tmp_path / "out.parquet")
    assert read.schema.field("embedding").type == pa.list_(pa.float32(), 5)
    assert read.schema.metadata[b"origin"] == b"here"
    assert read.drop(["embedding"]).to_pydict() == table.to_pydict()
    np.testing.assert_array_equal(read["embedding"].combine_chunks().values.to_numpy().reshape(rows, 5), vectors)


def test_parquet_that_cannot_be_written(tmp_path):
    schema = pa.schema([("text", pa.string()), ("empty", pa.struct([]))])
    with (
        pytest.raises(ValueError, match=r"cannot be written as \.parquet"),
        open_output(tmp_path / "o.parquet", 2, schema),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_an_output_that_fails_leaves_what_was_there(tmp_path, error, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_text("older")
    batch = pa.record_batch({"text": ["x"]})

    def fail():
        with open_output(path, 2, batch.schema) as write:
            write(Chunk(["x"], batch), np.zeros((1, 2), np.float32))
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_whole_file(tmp_path):
    with whole_file(tmp_path / "a") as part:
        part.write_text("new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "new"


def test_whole_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("a/b", "empty"):
        with whole_directory(tmp_path / name) as part:
            (part / "file").write_text("x")
        assert (tmp_path / name / "file").read_text() == "x"
    for name in ("a/b", "a/b/file"):
        with (
            pytest.raises(FileExistsError, match="there already, and not an empty directory"),
            whole_directory(tmp_path / name),
        ):
            pass
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "c"):
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]


# Both


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("out.csv", ValueError, r"output .*: the suffix is '\.csv', expected one of \.npy, \.parquet"),
        ("none/out.npy", FileNotFoundError, "output .*: there is no directory .*none"),
        ("folder.npy", IsADirectoryError, "output .*: is a directory"),
        ("in.parquet", ValueError, "output .* is the input"),
        ("link.parquet", ValueError, "output .* is the input"),
        ("out.parquet", ValueError, "input .*: there is a column 'embedding' already"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, output, error, message):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["x"], "embedding": [[1.0]]}), source)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "link.parquet").symlink_to(source)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        prepare([source], tmp_path / output)
    assert sorted(tmp_path.iterdir()) == before
    assert prepare([source], tmp_path / "out.npy").survey.rows == 1  # where no columns are kept, none is in the way


def test_chunks_meet_their_vectors_and_are_not_kept():
    """A stream that reads five texts ahead: chunks wait for it, and go as soon as they are full."""
    drawn = []

    def chunks():
        start = 0
        for size in (2, 3, 1, 4, 7):
            drawn.append(size)
            yield Chunk([str(i) for i in range(start, start + size)])
            start += size

    def embed(texts):
        waiting = []
        for text in texts:
            waiting.append(np.float32([int(text)]))
            if len(waiting) > 5:
                yield waiting.pop(0)
        yield from waiting

    seen, ahead = [], []
    with closing(with_vectors(chunks(), embed)) as pairs:
        for chunk, vectors in pairs:
            assert vectors[:, 0].tolist() == [float(text) for text in chunk.texts]
            seen += chunk.texts
            ahead.append(sum(drawn) - len(seen))
    assert seen == [str(i) for i in range(17)]
    assert max(ahead) <= 5 + 7


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with LLM(tiny_bert(tmp_path_factory.mktemp("tiny"))) as engine:
        yield engine


@pytest.fixture(scope="module")
def vectors(llm):
    return llm.embed_array(TEXTS)


@pytest.fixture
def source(request, tmp_path):
    """`TEXTS` as a file, with other columns where there can be some; and all columns as they should come out."""
    file = tmp_path / f"in{request.param}"
    rows = [{"id": i, "text": text, "even": i % 2 == 0} for i, text in enumerate(TEXTS)]
    if request.param == ".txt":
        file.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        rows = [{"text": text} for text in TEXTS]
    elif request.param == ".jsonl":
        write_lines(file, *rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file, rows


@pytest.mark.parametrize("source", [".txt", ".jsonl", ".parquet"], indirect=True)
@pytest.mark.parametrize("output", [".npy", ".parquet"])
def test_a_file_is_embedded_as_a_list_is(tmp_path, llm, vectors, source, output, chunk_size):
    file, rows = source
    path = tmp_path / f"out{output}"
    line = prepare([file], path).run(Embedder(llm))
    assert line.startswith(f"{len(TEXTS)} texts, ")
    assert " 1 truncated" in line
    assert line.endswith(f"-> {path}")
    if output == ".npy":
        written = np.load(path)
    else:
        table = pq.read_table(path)
        assert table.drop(["embedding"]).to_pylist() == rows
        written = np.array(table["embedding"].to_pylist(), np.float32)
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, vectors, rtol=0, atol=1e-6)


def test_prompts_reach_the_model(tmp_path, llm):
    (tmp_path / "in.txt").write_text("fox\n")
    prepare([tmp_path / "in.txt"], tmp_path / "out.npy").run(Embedder(llm, prompt="query: "), progress=True)
    expected = llm.embed_array(["query: fox"])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-6)


def test_an_empty_file(tmp_path, llm):
    (tmp_path / "in.txt").write_text("")
    prepare([tmp_path / "in.txt"], tmp_path / "out.npy").run(Embedder(llm))
    prepare([tmp_path / "in.txt"], tmp_path / "out.parquet").run(Embedder(llm))
    assert np.load(tmp_path / "out.npy").shape == (0, 32)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert table.schema.names == ["text", "embedding"]


def test_the_column_of_a_txt_file_has_the_name_asked_for(tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    assert prepare([tmp_path / "in.txt"], tmp_path / "out.parquet", "body").survey.schema.names == ["body"]
    with pytest.raises(ValueError, match="column 'embedding' already"):
        prepare([tmp_path / "in.txt"], tmp_path / "out.parquet", "embedding")


def test_widening_an_empty_schema():
    schema = arrow.widen(pa.schema([]), [{"a": 1}, {"b": "x"}], str)
    assert schema == pa.schema([("a", pa.int64()), ("b", pa.string())])
    batch = arrow.record_batch([{"a": 1}, {"b": "x"}], schema)
    assert batch.to_pydict() == {"a": [1, None], "b": [None, "x"]}
