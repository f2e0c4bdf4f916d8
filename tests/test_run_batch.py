"""`jaxpool run-batch`: OpenAI's batch format in and out, through the server's endpoints in process."""

import asyncio
import io
import json

import numpy as np
import pytest

from jaxpool import LLM
from jaxpool.cli import main
from jaxpool.server import run_batch

from .tiny import SENTENCES, tiny_bert, tiny_classifier

SMALL = ("--max-num-batched-tokens", "256", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("batch") / "m", layers=1)


def request(name, url="/v1/embeddings", method="POST", **body):
    return {"custom_id": name, "method": method, "url": url, "body": body}


def write(path, lines):
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
    return path


def batch(tmp_path, lines, *arguments):
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    status = main(["run-batch", *map(str, arguments), "-i", str(source), "-o", str(target), *SMALL])
    return status, [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else None


def test_answers_stand_in_the_order_of_the_requests(model, tmp_path, capsys):
    texts = [SENTENCES[i % len(SENTENCES)][: 9 + i] for i in range(40)]
    lines = [request(f"r{i}", model="tiny", input=text) for i, text in enumerate(texts)]
    status, found = batch(tmp_path, lines, model, "--served-model-name", "tiny", "--max-concurrent", 7)
    assert status == 0
    assert [line["custom_id"] for line in found] == [f"r{i}" for i in range(40)]
    assert {line["response"]["status_code"] for line in found} == {200}
    assert all(line["error"] is None for line in found)
    assert len({line["id"] for line in found} | {line["response"]["request_id"] for line in found}) == 80
    with LLM(model, max_num_batched_tokens=256) as llm:
        expected = llm.embed_array(texts)
    vectors = [line["response"]["body"]["data"][0]["embedding"] for line in found]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert "40 answered, 0 refused, 0 broken" in capsys.readouterr().out


def test_none_is_sent_away(model, tmp_path):
    """However many bodies wait to be read: a server would refuse some of these."""
    text = "a dog jumps over the lazy fox " * 60
    lines = [request(str(i), input=[text] * 10) for i in range(40)]
    status, found = batch(tmp_path, lines, model, "--max-body-bytes", 2**15, "--max-concurrent", 40)
    assert status == 0
    assert {line["response"]["status_code"] for line in found} == {400}  # too long for the model, and read all the same
    more = [request(str(i), input=[text] * 10, truncate_prompt_tokens=-1) for i in range(40)]
    _, found = batch(tmp_path, more, model, "--max-body-bytes", 2**15, "--max-concurrent", 40)
    assert {line["response"]["status_code"] for line in found} == {200}


def test_a_request_keeps_its_own_id(model, tmp_path):
    _, found = batch(tmp_path, [request("a", input="hello", request_id="mine"), request("b", input="hello")], model)
    mine, other = (line["response"] for line in found)
    assert mine["body"]["id"] == "embd-mine"
    assert other["body"]["id"] == f"embd-{other['request_id']}"


def test_a_broken_line_is_a_line(model, tmp_path, capsys):
    lines = [
        request("first", input="hello"),
        b"{no json",
        b"",
        [1],
        {"method": "POST", "url": "/v1/embeddings", "body": {}},
        request("text", input="hello") | {"body": "hello"},
        request("get", method="GET", input="hello"),
        request("elsewhere", "https://example.org/v1/embeddings", input="hello"),
        request("bytes", input="hello", encoding_format="bytes"),
        b'{"custom_id": "\\ud800", "url": "/v1/embeddings", "body": {}}',
        b"[" * 100_000,
        request("refused", input="nobody saves " * 200),
        request("lost", "/v1/chat/completions", input="hello"),
        request("not here", model="gone", input="hello"),
        {"custom_id": "last", "url": "/pooling?x=1", "body": {"input": "hello", "task": "token_embed"}},
    ]
    status, found = batch(tmp_path, lines, "--model", model)
    assert status == 0
    seen = [(line["custom_id"], line["response"] and line["response"]["status_code"]) for line in found]
    assert seen == [
        ("first", 200),
        *[(None, None)] * 3,
        ("text", None),
        ("get", None),
        ("elsewhere", None),
        ("bytes", None),
        *[(None, None)] * 2,
        ("refused", 400),
        ("lost", 404),
        ("not here", 404),
        ("last", 200),
    ]
    for line in found:
        assert (line["error"] is None) == (line["response"] is not None)
    told = {line["custom_id"]: line["error"]["message"] for line in found if line["error"]}
    assert "'GET'" in told["get"]
    assert "`body`: expected dict, got str" in told["text"]
    assert "example.org" in told["elsewhere"]
    assert "base64" in told["bytes"]
    (refused,) = [line["response"]["body"] for line in found if line["custom_id"] == "refused"]
    assert "maximum context length" in refused["error"]["message"]
    assert "2 answered, 3 refused, 9 broken" in capsys.readouterr().out


def test_every_endpoint_answers(tmp_path):
    ranker = tiny_classifier(tmp_path / "r", labels=1)
    texts = list(SENTENCES[:2])
    lines = [
        request("score", "/score", queries="x", documents=texts),
        request("rerank", "/v1/rerank", query="x", documents=texts),
        request("classify", "/classify", input=texts),
    ]
    # A key of the server's in the environment asks nobody here for one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", "secret")
        status, found = batch(tmp_path, lines, ranker)
    assert status == 0
    assert [line["response"]["status_code"] for line in found] == [200] * 3
    score, rerank, classify = (line["response"]["body"] for line in found)
    assert sorted((x["score"] for x in score["data"]), reverse=True) == pytest.approx(
        [x["relevance_score"] for x in rerank["results"]]
    )
    assert len(classify["data"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "give a MODEL"), (("m", "--max-concurrent", 0), "--max-concurrent"), (("nowhere/at/all",), "nowhere")],
)
def test_what_the_user_can_put_right(tmp_path, arguments, said, capsys):
    status, found = batch(tmp_path, [request("x", input="x")], *arguments)
    assert status == 2
    assert said in capsys.readouterr().err
    assert found is None


def test_an_input_that_is_not_there(model, tmp_path, capsys):
    status = main(["run-batch", str(model), "-i", str(tmp_path / "none"), "-o", str(tmp_path / "out"), *SMALL])
    assert status == 2
    assert "none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class App:
    """Counts how many requests are under way; the first waits for the last that may come beside it."""

    def __init__(self, at_once):
        self.at_once, self.running, self.most = at_once, 0, 0
        self.full = asyncio.Event()
        self.router = self
        self.started = self.ended = 0

    def lifespan_context(self, app):
        return self

    async def __aenter__(self):
        self.started += 1

    async def __aexit__(self, *_):
        self.ended += 1

    async def __call__(self, scope, receive, send):
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == self.at_once:
            self.full.set()
        await self.full.wait()
        body = (await receive())["body"]
        self.running -= 1
        if b"fail" in body:
            raise RuntimeError("the application is broken")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def answer(lines, at_once):
    async def run():
        app, out = App(at_once), io.BytesIO()
        try:
            counts = await run_batch.answer_lines(app, [json.dumps(line).encode() for line in lines], out, at_once)
        except RuntimeError as error:
            return app, str(error), None
        return app, counts, [json.loads(line) for line in out.getvalue().splitlines()]

    return asyncio.run(run())


def test_many_at_a_time_but_no_more():
    app, counts, found = answer([request(str(i), n=i) for i in range(50)], 8)
    assert app.most == 8
    assert counts == run_batch.Counts(answered=50)
    assert [line["response"]["body"] for line in found] == [{"n": i} for i in range(50)]
    assert (app.started, app.ended) == (1, 1)


def test_an_application_that_fails_ends_it():
    app, said, _ = answer([request("x", text="fail"), request("y", text="fine")], 2)
    assert said == "the application is broken"
    assert (app.started, app.ended) == (1, 1)


def test_an_output_is_whole_or_not_there(model, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("from before\n")

    async def broken(*_):
        raise OSError("no space is left")

    monkeypatch.setattr(run_batch, "answer_lines", broken)
    source = write(tmp_path / "in.jsonl", [request("x", input="x")])
    status = main(["run-batch", str(model), "-i", str(source), "-o", str(tmp_path / "out.jsonl"), *SMALL])
    assert status == 2
    assert (tmp_path / "out.jsonl").read_text() == "from before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
