"""Bodies and connections that nobody sends in good faith: each gets an answer below 500 or none, and the server lives on."""

import gc
import json
import socket
import struct
import threading
import time
from contextlib import ExitStack, closing

import httpx
import psutil
import pytest
from hypothesis import Phase, given, settings

from jaxpool.server import metrics
from jaxpool.server.app import Settings
from jaxpool.server.limits import Limits
from tests.nasty import NASTY
from tests.servers import running, tiny_servings

schemathesis = pytest.importorskip("schemathesis", reason="the extra `test` brings it")

# Seconds within which a server that is well answers, and bytes that it may keep: of all of this file, with the programs
# that are compiled for it, and of more of the same.
SOON, GROWTH, MORE = 20, 800 * 2**20, 48 * 2**20
DEPTH = 10_000
JSON = {"content-type": "application/json"}

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def servings(tmp_path_factory):
    return tiny_servings(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def url(servings):
    with running(servings, Settings(warm=False, limits=Limits(body_bytes=16 * 2**20))) as url:
        before = memory()
        yield url
        assert memory() - before < GROWTH


@pytest.fixture(autouse=True)
def well(url, servings):
    """Afterwards nothing waits, no answer was a 500, and there still are answers."""
    before = internal_errors()
    yield
    assert soon(lambda: all(serving.load == 0 for serving in servings))
    assert soon(lambda: not any(serving._scheduler.queued_tokens for serving in servings))
    assert internal_errors() == before
    for serving in servings:
        path = "/v1/embeddings" if serving.recipe.embeds else "/classify"
        answer = httpx.post(url + path, json={"model": serving.name, "input": "a dog"}, timeout=SOON)
        assert answer.status_code == 200, answer.text
    assert httpx.get(url + "/health", timeout=SOON).status_code == 200


def internal_errors():
    samples = [s for family in metrics.requests.collect() for s in family.samples]
    return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["status"] == "500")


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


def soon(condition):
    until = time.monotonic() + SOON
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


# What the server says of itself.


@pytest.fixture(scope="module")
def document(url):
    return schemathesis.openapi.from_url(url + "/openapi.json")


def test_whatever_the_document_allows(document):
    how = settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:

        @how
        @given(case=operation.as_strategy())
        def ask(case):
            case.call_and_validate(timeout=SOON, checks=[schemathesis.checks.not_a_server_error])

        ask()


# Bodies that are no body.

RAW = {
    "nothing": b"",
    "no JSON": b"\x00\x01\x02",
    "half of it": b'{"input": "a d',
    "a text": b'"a dog"',
    "a list": b'[{"input": "a dog"}]',
    "null": b"null",
    "NaN": b"NaN",
    "deep lists": b'{"input": ' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    "deep objects": b'{"a":' * DEPTH + b"1" + b"}" * DEPTH,
    "no UTF-8": b'{"input": "\xff\xfe\xfa"}',
    "half a character": b'{"input": "\xf0\x9f\x98"}',
    "digits": b'{"input": [' + b"1" * 10_000 + b"]}",
    "10 MB": b"[" + b"1," * 5_000_000 + b"1]",
    "17 MB": b" " * (17 * 2**20),
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_no_body_at_all(url, body):
    with httpx.Client(base_url=url, headers=JSON, timeout=SOON) as client:
        document = client.get("/openapi.json").json()
        paths = [path for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {})]
        assert "/v1/embeddings" in paths
        for path in paths if len(body) < 10**6 else paths[:2]:
            response = client.post(path, content=body)
            assert response.status_code == (413 if len(body) > 16 * 2**20 else 400), (path, response.text[:500])
            assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x/\xff"]
)
def test_other_content_types(url, kind):
    response = httpx.post(
        url + "/v1/embeddings", content=b'{"input": "a dog"}', headers={"content-type": kind.encode("latin-1")}
    )
    assert response.status_code in (200, 400, 415, 422)


# Bodies with one poisoned field.

BODIES = {
    "/v1/embeddings": {"model": "embed", "input": ["a", "b"]},
    "/pooling": {"model": "classes", "input": "a"},
    "/classify": {"model": "classes", "input": "a"},
    "/score": {"model": "pairs", "text_1": "a", "text_2": ["b", "c"]},
    "/rerank": {"model": "pairs", "query": "a", "documents": ["b", "c"], "top_n": 1, "return_documents": True},
    "/v1/rerank": {"model": "embed", "query": "a", "documents": ["b", "c"]},
    "/tokenize": {"model": "embed", "prompt": "a"},
    "/detokenize": {"model": "embed", "tokens": [1, 2]},
    "/v2/embed": {"model": "embed", "texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]},
    "/embed": {"model": "embed", "inputs": ["a"]},
    "/predict": {"model": "classes", "inputs": "a"},
    "/similarity": {"model": "embed", "inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/invocations": {"model": "chat", "messages": [{"role": "user", "content": "a"}]},
}
POISON = {
    "null": "null",
    "true": "true",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "zero": "0",
    "-1": "-1",
    "2**31": str(2**31),
    "2**70": str(2**70),
    "-2**70": str(-(2**70)),
    "1e308": "1e308",
    "empty text": '""',
    "empty list": "[]",
    "empty object": "{}",
    "empty lists": "[[], []]",
    "lone surrogate": '"\\ud83d"',
    "list of a lone surrogate": '["\\udfff"]',
    "key of a lone surrogate": '{"\\ud83d": 1}',
    "control characters": json.dumps("".join(map(chr, range(32))) + "\x7f\u2028\ufffe"),
    "nasty texts": json.dumps(NASTY),
    "out of vocabulary": "[[1, 2], [99999999]]",
    "negative ids": "[-5, 1]",
    "ids and texts": '["a", 1, null]',
    "messages without content": '[{"role": "user"}, {}]',
    "deep": "[" * 500 + "]" * 500,
    "long text": '"' + "ab " * 333_333 + '"',
    "one long word": '"' + "a" * 10**5 + '"',
    "long list": json.dumps(["a"] * 20_000),
    "long list of ids": json.dumps([7] * 200_000),
}  # fmt: skip


@pytest.fixture(scope="module")
def fields(url):
    """Path -> the fields that its body may have."""
    document = httpx.get(url + "/openapi.json").json()
    kinds = document["components"]["schemas"]
    found = {}
    for path, body in BODIES.items():
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        declared = schema.get("anyOf") or [kinds[schema["$ref"].rpartition("/")[2]]]
        found[path] = sorted({name for kind in declared for name in kind["properties"]} | body.keys())
    return found


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_one_field_is_poisoned(url, fields, poison):
    with httpx.Client(base_url=url, headers=JSON, timeout=60) as client:
        for path, body in BODIES.items():
            assert client.post(path, json=body).status_code == 200, path
            for field in fields[path]:
                content = json.dumps(body | {field: "@"}).replace('"@"', poison)
                response = client.post(path, content=content)
                assert response.status_code < 500, (path, field, response.text[:500])
                assert response.headers["content-type"] in ("application/json", "application/octet-stream")


def test_nothing_is_kept(url):
    def ask():
        for body in (*RAW.values(), *POISON.values()):
            poisoned = b'{"input": "a dog", "user": ' + (body if isinstance(body, bytes) else body.encode()) + b"}"
            for content in (body, poisoned):
                client.post("/v1/embeddings", content=content)

    with httpx.Client(base_url=url, headers=JSON, timeout=60) as client:
        ask()
        before = memory()
        for _ in range(4):
            ask()
    assert memory() - before < MORE


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-timeout": "nan"},
        {"x-request-timeout": "-1"},
        {"x-request-timeout": "9" * 400},
        {"x-request-id": "i" * 10_000},
        {"x-request-id": "\xff\x85"},
        {"authorization": "Bearer \xff"},
        {"traceparent": "00-zz-zz-zz"},
        {"accept-encoding": "nonsense;q=nan"},
        {"content-encoding": "gzip"},
    ],
    ids=lambda headers: next(f"{name}-{value[:5]!a}" for name, value in headers.items()),
)
def test_headers(url, headers):
    raw = {name: value.encode("latin-1") for name, value in (JSON | headers).items()}
    response = httpx.post(url + "/v1/embeddings", content=b'{"input": "a dog"}', headers=raw)
    assert response.status_code in (200, 400, 415)


# Connections.

BODY = json.dumps({"model": "embed", "input": ["the quick brown fox jumps over a lazy dog " * 5] * 40})
HEAD = (
    f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
)
SMALL = b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{"input": "a"}'


def connect(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SOON)


def everything(connection):
    """What still comes until the server closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def vanish(connection):
    """Ends a connection as a client that crashes does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_byte_at_a_time(url):
    with closing(connect(url)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in SMALL:
            connection.sendall(bytes([byte]))
            time.sleep(0.002)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_half_closed(url):
    with closing(connect(url)) as connection:
        connection.sendall(SMALL)
        connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 200 ")


CUTS = {"nothing": 0, "half a head": 40, "the head": len(HEAD), "half a body": len(HEAD) + len(BODY) // 2}


@pytest.mark.parametrize("leave", [socket.socket.close, vanish])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_gone_before_the_end(url, cut, leave):
    for _ in range(10):
        connection = connect(url)
        connection.sendall((HEAD + BODY).encode()[:cut])
        leave(connection)


def test_gone_in_mid_request(url, servings, monkeypatch):
    """What nobody waits for any more is not computed, and no longer stands in the queue."""
    runner, submitted, go = servings[0].llm.engine.runner, [], threading.Event()
    submit = runner.submit

    def held(task, plan, sequences):
        submitted.append(plan)
        assert go.wait(SOON)
        return submit(task, plan, sequences)

    monkeypatch.setattr(runner, "submit", held)
    texts = [f"{number} dogs jump over a lazy fox " * 4 for number in range(40)]
    head = HEAD.partition("content-length")[0]
    with ExitStack() as stack:
        stack.callback(go.set)
        connections = []
        for _ in range(20):
            body = json.dumps({"model": "embed", "input": texts}).encode()
            connections.append(connect(url))
            connections[-1].sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert soon(lambda: servings[0]._scheduler.waiting >= 19)
        for connection in connections:
            vanish(connection)
        assert soon(lambda: servings[0]._scheduler.waiting <= 1), "what is gone still waits"
    assert len(submitted) < len(connections), "what is gone was computed"


def one_answer(connection):
    """All of it, so that what is read next is the next one's."""
    read = b""
    while b"\r\n\r\n" not in read:
        read += connection.recv(65536)
    head, _, body = read.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return read


def test_many_connections_that_are_kept(url):
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connect(url))) for _ in range(300)]
        for _ in range(3):
            for connection in connections:
                connection.sendall(SMALL)
            for connection in connections:
                assert one_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_keep_nobody_out(url):
    with ExitStack() as stack:
        for number in range(200):
            stack.enter_context(closing(connect(url))).sendall(SMALL[: number % 40])
        assert httpx.post(url + "/v1/embeddings", json={"input": "a dog"}, timeout=SOON).status_code == 200


BYTES = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "HTTP/9": b"POST /score HTTP/9.9\r\n\r\n",
    "a long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET /health HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    "two lengths": b"POST /score HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    "a negative length": b"POST /score HTTP/1.1\r\ncontent-length: -1\r\n\r\n{}",
    "length and chunks": b"POST /score HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk without end": b"POST /score HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    "no chunk": b"POST /score HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "an odd path": b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "a websocket": b"GET /score HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n",
}


@pytest.mark.parametrize("sent", BYTES.values(), ids=BYTES)
def test_no_request(url, sent):
    with closing(connect(url)) as connection:
        connection.settimeout(1)
        connection.sendall(sent)
        try:
            answer = everything(connection)
        except TimeoutError:  # the server waits for more
            answer = b""
    assert b" 500 " not in answer[:20]
    assert b" 200 " not in answer[:20]
