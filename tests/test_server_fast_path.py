"""The short way to an endpoint: what takes it, and that nobody can tell."""

import asyncio
import json

import pytest
from starlette.testclient import TestClient

from jaxpool.server import fast_path
from jaxpool.server.app import ROUTERS, Pages, Settings, make_app
from jaxpool.server.fast_path import FastPath
from jaxpool.server.limits import Limits
from tests.servers import tiny_servings

ROUTES = [route for router in ROUTERS for route in router.routes]
JSON = [(b"content-type", b"Application/JSON; charset=utf-8")]
TEXTS = {"model": "embed", "input": ["hello", "the quick brown fox"]}


async def sent(app, body, headers=JSON, path="/v1/embeddings", pieces=1, **more):
    """What an ASGI application says to a POST whose body comes in pieces."""
    size = -(-len(body) // pieces)
    left = [body[i * size : (i + 1) * size] for i in range(pieces)]
    said = []

    async def receive():
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "state": {}}
    scope |= more
    await app(scope, receive, send)
    return scope, said


class Behind:
    """An application that notes what reaches it."""

    def __init__(self):
        self.messages = []

    async def __call__(self, scope, receive, send):
        self.messages.append([])
        while True:
            message = await receive()
            self.messages[-1].append(message)
            if not message.get("more_body"):
                return

    @property
    def bodies(self):
        return [b"".join(message.get("body", b"") for message in messages) for messages in self.messages]


def fast(monkeypatch, behind):
    """The short way with an endpoint that says what it was given."""
    routes = [route for route in ROUTES if route.path == "/v1/embeddings"]

    async def endpoint(request, body):
        return fast_path.Response(json.dumps(body.input))

    app = FastPath(behind, routes)
    monkeypatch.setattr(routes[0], "endpoint", endpoint)
    return app


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_valid_body_goes_straight_to_the_endpoint(monkeypatch, pieces):
    behind = Behind()
    scope, said = asyncio.run(sent(fast(monkeypatch, behind), json.dumps(TEXTS).encode(), pieces=pieces))
    assert json.loads(said[1]["body"]) == TEXTS["input"]
    assert scope["route"].path == "/v1/embeddings"
    assert behind.messages == []


@pytest.mark.parametrize("prefix", ["", "/api"], ids=["taken away", "kept"])
def test_behind_a_proxy(monkeypatch, prefix):
    behind = Behind()
    path = f"{prefix}/v1/embeddings"
    _, said = asyncio.run(sent(fast(monkeypatch, behind), json.dumps(TEXTS).encode(), path=path, root_path="/api"))
    assert json.loads(said[1]["body"]) == TEXTS["input"]
    assert behind.messages == []


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    ("body", "headers", "path"),
    [
        (b'{"input": ', JSON, "/v1/embeddings"),
        (b'{"input": "a", "dimensions": "many"}', JSON, "/v1/embeddings"),
        (b"\xff\xfe", JSON, "/v1/embeddings"),
        (b"[" * 100_000, JSON, "/v1/embeddings"),
        (b'{"input": "a"}', [], "/v1/embeddings"),
        (b'{"input": "a"}', [(b"content-type", b"text/plain")], "/v1/embeddings"),
        (b'{"input": "a"}', JSON, "/nothing"),
    ],
)
def test_all_else_reaches_the_application_whole(monkeypatch, body, headers, path, pieces):
    behind = Behind()
    _, said = asyncio.run(sent(fast(monkeypatch, behind), body, headers, path, pieces))
    assert said == []
    assert behind.bodies == [body]


def test_a_client_that_goes_away_amid_its_body(monkeypatch):
    behind, app = Behind(), None
    app = fast(monkeypatch, behind)

    async def scenario():
        messages = [{"type": "http.request", "body": b'{"inp', "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": JSON}
        await app(scope, receive, None)

    asyncio.run(scenario())
    assert [message["type"] for message in behind.messages[0]] == ["http.request", "http.disconnect"]


def test_which_endpoints_have_one():
    found = FastPath(None, ROUTES)._found
    assert {"/v1/embeddings", "/pooling", "/classify", "/score", "/v1/rerank", "/v2/embed", "/embed"} <= set(found)
    assert {"/tokenize", "/detokenize", "/decode"} <= set(found)
    # These take more than a body, or no body.
    assert not {"/rerank", "/invocations", "/health", "/info"} & set(found)


BODIES = [
    ("/v1/embeddings", TEXTS),
    ("/v1/embeddings", {"model": "embed", "input": [[1, 2], [3]], "encoding_format": "base64"}),
    ("/v1/embeddings", {"model": "embed", "input": ["1", 2]}),
    ("/v1/embeddings", {"model": "embed", "input": [True, 1.0]}),
    ("/v1/embeddings", {"model": "embed", "input": "a", "dimensions": 3}),
    ("/v1/embeddings", {"model": "none", "input": "a"}),
    ("/v1/embeddings", {"model": "classes", "input": "a"}),
    ("/v1/embeddings", {"model": "embed", "input": "\ud800"}),
    ("/v1/embeddings", {"model": "embed", "input": ["a"] * 65}),
    ("/v1/embeddings", ["a"]),
    ("/v1/embeddings", None),
    ("/v1/rerank", {"model": "pairs", "query": "hello", "documents": ["fox", "hello"]}),
    ("/classify", {"model": "classes", "input": []}),
    ("/score", {"model": "pairs", "text_1": "hello", "text_2": ["fox"]}),
    ("/embed", {"model": "embed", "inputs": "hello"}),
    ("/v2/embed", {"model": "embed", "texts": ["hello"], "input_type": "search_query", "embedding_types": ["int8"]}),
]


def test_nobody_can_tell(tmp_path, monkeypatch):
    settings = Settings(warm=False, limits=Limits(texts=64), pages=Pages(["https://example.com"]))
    answers = []
    for way in ("short", "long"):
        if way == "long":
            monkeypatch.setattr(fast_path, "_body", lambda route: None)
        app = make_app(tiny_servings(tmp_path / way, limits=settings.limits), settings)
        with TestClient(app, headers={"Origin": "https://example.com"}) as client:
            found = [
                client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
                for path, body in BODIES
            ]
        answers.append(
            [
                (
                    one.status_code,
                    {k: v for k, v in one.json().items() if k not in ("id", "created")}
                    if isinstance(one.json(), dict)
                    else one.json(),
                    set(one.headers),
                )
                for one in found
            ]
        )
    assert answers[0] == answers[1]
    assert {status for status, _, _ in answers[0]} == {200, 400, 404, 413}
