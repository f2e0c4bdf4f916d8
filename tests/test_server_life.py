"""A server from its start to its end: ready, full, late, left alone, told to stop."""

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import httpx
import jax
import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxpool import LLM
from jaxpool.cli import main
from jaxpool.runner import Batch
from jaxpool.server import garbage, readers
from jaxpool.server.app import Settings, make_app
from jaxpool.server.errors import ApiError
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving, Wait
from tests.tiny import tiny_bert, tiny_classifier

SOON = 30
TEXTS = ["a stitch in time", "hello, my name is nobody"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("life") / "model")


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory) as llm:
        yield llm


class Held:
    """A runner's `submit` that waits until it is let go."""

    def __init__(self, serving, monkeypatch):
        self.runner, self.gate = serving.llm.engine.runner, threading.Event()
        self._submit = self.runner.submit
        self.begun = threading.Semaphore(0)
        monkeypatch.setattr(self.runner, "submit", self.submit)

    def submit(self, *arguments):
        self.begun.release()
        self.gate.wait(SOON)
        return self._submit(*arguments)


def asking(llm, limits, scenario, *, ready=True, **settings):
    """Runs `scenario(client, serving)` against an application in this process."""

    async def main():
        serving = Serving(llm, ("tiny",), limits)
        serving.llm = _Kept(llm)
        app = make_app([serving], Settings(limits=limits, warm=False, **settings))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server", timeout=SOON) as client,
        ):
            serving.ready = ready
            return await scenario(client, serving)

    return asyncio.run(main())


class _Kept:
    """The model, which is not closed with its server: other tests go on with it."""

    def __init__(self, llm):
        self._llm = llm

    def __getattr__(self, name):
        return getattr(self._llm, name)

    def close(self):
        pass


async def held(gate):
    await asyncio.get_running_loop().run_in_executor(None, gate.begun.acquire, True, SOON)


def ask(client, texts=TEXTS, **more):
    return client.post("/v1/embeddings", json={"input": texts}, **more)


def test_a_full_queue(llm, monkeypatch):
    async def scenario(client, serving):
        gate = Held(serving, monkeypatch)
        first = [asyncio.create_task(ask(client, [f"{i} {j}" for j in range(150)])) for i in range(3)]
        await held(gate)
        while serving._scheduler.queued_tokens < 1200:
            await asyncio.sleep(0.01)
        refused = await ask(client, [f"{i} " + "x " * 25 for i in range(30)])
        gate.gate.set()
        answers = await asyncio.gather(*first)
        again = await ask(client)
        return refused, [answer.status_code for answer in answers], again

    refused, statuses, again = asking(llm, Limits(queued_tokens=2000), scenario)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "the queue is full" in refused.json()["error"]["message"]
    assert set(statuses) <= {200, 429}
    assert 200 in statuses
    assert again.status_code == 200


def test_a_large_request_does_not_shut_others_out(llm, monkeypatch):
    """One of more than half of the queue waits beside it, and the next large one until it has begun."""

    async def scenario(client, serving):
        gate = Held(serving, monkeypatch)
        texts = [f"{i} " + "x " * 25 for i in range(100)]
        large = asyncio.create_task(ask(client, texts))
        await held(gate)
        second = await ask(client, texts)
        small = asyncio.create_task(ask(client))
        while serving.load < 2:
            await asyncio.sleep(0.01)
        load = (await client.get("/load")).json()
        metrics = (await client.get("/metrics")).text
        gate.gate.set()
        return load, metrics, second, await small, await large, await ask(client, texts)

    load, metrics, second, small, large, again = asking(llm, Limits(queued_tokens=2000), scenario)
    assert load == {"server_load": 2}
    waiting = re.search(r'jaxpool_queued_tokens{model="tiny"} (\d+)', metrics)
    assert waiting is not None
    assert int(waiting[1]) > 2000
    assert second.status_code == 429
    assert "large" in second.json()["error"]["message"]
    assert [answer.status_code for answer in (small, large, again)] == [200] * 3


def test_a_long_body_is_not_read_before_short_ones(llm):
    """A short one has threads of its own; who has gone, or is too late, is not read at all."""

    async def scenario(client, serving):
        let_go, made = threading.Event(), []

        def slow():
            let_go.wait(SOON)
            return serving.calls.encode(["slow"])

        def never():
            made.append("read")
            return serving.calls.encode(["never"])

        gone = asyncio.get_running_loop().create_future()
        long = asyncio.create_task(serving.answer(slow, size=readers.LONG))
        behind = [
            asyncio.create_task(serving.answer(never, Wait(None, gone=gone), size=readers.LONG)),
            asyncio.create_task(serving.answer(never, Wait(0.01), size=readers.LONG)),
        ]
        short = await ask(client)
        assert not long.done()
        gone.set_result(None)
        await asyncio.sleep(0.02)
        left = asyncio.get_running_loop().create_future()
        left.set_result(None)
        with pytest.raises(ApiError, match="the client has gone"):
            await serving.read(lambda: made.append("read"), Wait(None, gone=left), 0)
        counted = await client.post("/tokenize", json={"prompt": TEXTS[0]})
        # Beside three long ones there is room for less than that.
        refused = await client.post("/detokenize", json={"tokens": [1] * 6000})
        let_go.set()
        await long
        return short, counted, refused, await asyncio.gather(*behind, return_exceptions=True), made

    short, counted, refused, behind, made = asking(llm, Limits(body_bytes=26_000, queued_tokens=1000), scenario)
    assert short.status_code == counted.status_code == 200
    assert refused.status_code == 429
    assert [error.status_code for error in behind] == [499, 504]
    assert not made


def test_too_late(llm, monkeypatch):
    async def scenario(client, serving):
        gate = Held(serving, monkeypatch)
        first = asyncio.create_task(ask(client, [f"{j}" for j in range(500)]))
        await held(gate)
        late = asyncio.create_task(ask(client, headers={"x-request-timeout": "0.05"}))
        await asyncio.sleep(0.2)
        gate.gate.set()
        wrong = await ask(client, headers={"x-request-timeout": "soon"})
        return await first, await late, wrong

    first, late, wrong = asking(llm, Limits(), scenario)
    assert first.status_code == 200
    assert late.status_code == 504
    assert wrong.status_code == 400


def test_who_has_gone_is_dropped(llm, monkeypatch):
    """The work of a client that closes its connection leaves the queue."""

    async def scenario(client, serving):
        gate = Held(serving, monkeypatch)
        call = serving.calls.encode([f"{i}" for i in range(2000)])
        gone = asyncio.get_running_loop().create_future()
        asked = asyncio.create_task(serving.answer(lambda: call, Wait(None, gone=gone)))
        await held(gate)
        gone.set_result(None)
        with pytest.raises(Exception, match="the client has gone"):
            await asked
        gate.gate.set()
        answer = await ask(client)
        return serving._scheduler.queued_tokens, answer

    left, answer = asking(llm, Limits(), scenario)
    assert left == 0
    assert answer.status_code == 200


def test_a_failing_device(llm, monkeypatch):
    async def scenario(client, serving):
        runner = serving.llm.engine.runner
        real = runner.submit

        def broken(*_):
            raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone, see /root/secret")

        monkeypatch.setattr(runner, "submit", broken)
        failed = [await ask(client) for _ in range(3)]
        unhealthy = await client.get("/health")
        monkeypatch.setattr(runner, "submit", real)
        answer = await ask(client)
        return failed, unhealthy, answer, await client.get("/health")

    failed, unhealthy, answer, healthy = asking(llm, Limits(), scenario)
    assert [f.status_code for f in failed] == [503] * 3
    assert "secret" not in failed[0].text
    assert unhealthy.status_code == 503
    assert answer.status_code == healthy.status_code == 200


def test_a_hanging_device(llm, monkeypatch):
    """Who waits for it is told, and so is who asks for the server's health."""

    async def scenario(client, serving):
        runner = serving.llm.engine.runner
        real, hung = runner.submit, Batch()
        hung.begun = time.monotonic()
        monkeypatch.setattr(runner, "submit", lambda *_: hung)
        failed = await ask(client)
        unhealthy = await client.get("/health")
        monkeypatch.setattr(runner, "submit", real)
        others = await ask(client)
        hung.set_exception(RuntimeError("after all"))
        return failed, unhealthy, others, await client.get("/health")

    failed, unhealthy, others, healthy = asking(llm, Limits(batch_timeout=0.1), scenario)
    assert failed.status_code == unhealthy.status_code == 503
    assert "does not come back" in unhealthy.json()["error"]["message"]
    assert others.status_code == healthy.status_code == 200


def test_a_model_that_cannot_be_warmed_up(llm, monkeypatch):
    async def scenario(client, serving):
        def warmup(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: see /root/secret")

        monkeypatch.setattr(serving.llm, "warmup", warmup, raising=False)
        cold = await client.get("/ready")
        with pytest.raises(jax.errors.JaxRuntimeError):
            await serving.warm()
        return cold, await client.get("/ready"), await ask(client)

    cold, failed, answer = asking(llm, Limits(), scenario, ready=False)
    assert [cold.status_code, failed.status_code, answer.status_code] == [503, 503, 200]
    assert "still warming up" in cold.text
    assert "could not be warmed up" in failed.text
    assert "secret" not in failed.text


def test_the_device_s_time_is_counted(llm):
    async def scenario(client, serving):
        before = serving.llm.stats.device_seconds
        start = time.monotonic()
        for _ in range(3):
            await ask(client, ["x " * 60] * 64)
        passed = time.monotonic() - start
        return serving.llm.stats.device_seconds - before, passed, (await client.get("/metrics")).text

    seconds, passed, text = asking(llm, Limits(), scenario)
    replicas = len(llm.engine.runner.replicas)
    assert 0 < seconds <= passed * replicas
    (told,) = re.findall(r'jaxpool_device_seconds_sum{model="tiny"} (\S+)', text)
    assert float(told) >= seconds > 0


def test_a_request_leaves_no_cycles(llm):
    """The garbage collector runs seldom: what waits for it would pile up."""

    async def scenario(client, serving):
        async def ask_some():
            for _ in range(100):
                await serving.answer(lambda: serving.calls.encode(["a stitch"]), Wait(60.0))

        await ask_some()
        gc.collect()
        gc.disable()
        try:
            await ask_some()
            return gc.collect()
        finally:
            gc.enable()

    assert asking(llm, Limits(), scenario) < 100


def test_large_requests(llm):
    async def scenario(client, serving):
        many = await ask(client, ["x"] * 11)
        long = await client.post("/v1/embeddings", content=b'{"input": "' + b"x" * 3000 + b'"}')
        chunks = (b" " * 1000 for _ in range(3))

        async def stream():
            for chunk in chunks:
                yield chunk

        chunked = await client.post("/v1/embeddings", content=stream(), headers={"content-type": "application/json"})
        return many, long, chunked

    many, long, chunked = asking(llm, Limits(texts=10, body_bytes=2000), scenario)
    assert [many.status_code, long.status_code, chunked.status_code] == [413] * 3


def test_a_closed_server_is_forgotten(llm):
    """Its counters leave /metrics: another of the same name would be counted twice."""

    async def scenario(client, serving):
        await ask(client)
        return (await client.get("/metrics")).text

    for _ in range(2):
        text = asking(llm, Limits(), scenario)
        assert text.count('jaxpool_queued_tokens{model="tiny"}') == 1


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def get(url, body=None):
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (urllib.error.URLError, ConnectionError):
        return 0, b""


@contextmanager
def serving(*arguments, path="/ready"):
    """The command itself, in a process of its own, once a path answers; yields it and its address."""
    port = free_port()
    command = [sys.executable, "-m", "jaxpool", "serve", *map(str, arguments), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 4 * SOON  # it starts and compiles, beside other tests
    try:
        while get(f"{url}{path}")[0] != 200:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def server(directory):
    with serving(directory, "--served-model-name", "a", "b") as found:
        yield found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(server, directory, number):
    """What is in flight is answered, then it ends; and once ready, nothing compiles, whatever is asked."""
    process, url = server
    compiled = lambda: re.findall(r"jaxpool_compilations_total\{.*", get(f"{url}/metrics")[1].decode())  # noqa: E731
    before = compiled()
    assert get(f"{url}/embed_all", {"inputs": [TEXTS[0], "a " * 60]})[0] == 200
    assert get(f"{url}/pooling", {"input": TEXTS, "task": "token_embed"})[0] == 200
    assert get(f"{url}/v1/embeddings", {"input": TEXTS})[0] == 200
    assert compiled() == before
    answers = []
    texts = [f"{i} " + "a " * 30 for i in range(4000)]

    def client():
        answers.append(get(f"{url}/v1/embeddings", {"input": texts, "model": "b"}))

    asked = threading.Thread(target=client)
    asked.start()
    end = time.monotonic() + SOON
    while b'queued_tokens{model="a"} 0.0' in get(f"{url}/metrics")[1]:
        assert time.monotonic() < end
        assert not answers
    process.send_signal(number)
    asked.join(SOON)
    _, said = process.communicate(timeout=SOON)
    assert process.returncode == (0 if number == signal.SIGINT else -number)
    assert said == f"jaxpool answers on {url} (Ctrl-C ends it)\n  a: embed, token_embed\n"
    ((status, body),) = answers
    assert status == 200
    vectors = np.array([item["embedding"] for item in json.loads(body)["data"]], np.float32)
    with LLM(directory) as llm:
        wanted = llm.embed_array(texts[:50])
    np.testing.assert_allclose(vectors[:50], wanted, atol=1e-5)
    assert float(before[0].split()[-1]) > 0
    assert get(f"{url}/health")[0] == 0


def test_several_models_by_the_command_line(directory, tmp_path):
    """`--model` alone, each with names of its own, and with flags of its own."""
    classes = tiny_classifier(tmp_path / "classes", labels=3)
    line = ["--model", directory, "--model", classes, "--served-model-name", "first", "also-first"]
    line += ["--served-model-name", "second", "--task", "embed", "--task", "classify", "--no-warmup"]
    with serving(*line, "--max-model-len", "32", "--max-model-len", "48", "--dtype", "float32") as (process, url):
        listed = json.loads(get(f"{url}/v1/models")[1])["data"]
        assert [(model["id"], model["max_model_len"]) for model in listed] == [
            ("first", 32),
            ("also-first", 32),
            ("second", 48),
        ]
        for name in ("first", "also-first", None):
            status, body = get(f"{url}/v1/embeddings", {"input": TEXTS} | ({"model": name} if name else {}))
            assert status == 200
            vectors = np.array([item["embedding"] for item in json.loads(body)["data"]], np.float32)
            with LLM(directory) as llm:
                np.testing.assert_allclose(vectors, llm.embed_array(TEXTS), atol=1e-5)
        status, body = get(f"{url}/classify", {"input": TEXTS, "model": "second"})
        assert status == 200
        with LLM(classes, task="classify") as llm:
            wanted = [output.outputs.probs for output in llm.classify(TEXTS, use_tqdm=False)]
        np.testing.assert_allclose([item["probs"] for item in json.loads(body)["data"]], wanted, atol=1e-5)
        assert get(f"{url}/classify", {"input": TEXTS, "model": "first"})[0] == 400
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SOON)
    assert said.splitlines()[1:] == ["  first: embed, token_embed", "  second: classify, token_classify"]


def test_a_directory_is_called_by_its_last_part(directory):
    """Its whole path is understood too, and shown nowhere."""
    with serving(f"{directory}/", "--no-warmup") as (process, url):
        for name in ("model", str(directory), f"{directory}/"):
            status, body = get(f"{url}/v1/embeddings", {"input": "a", "model": name})
            assert (status, json.loads(body)["model"]) == (200, "model")
        shown = [get(f"{url}{path}")[1] for path in ("/v1/models", "/info", "/metrics", "/health", "/ready")]
        shown.append(get(f"{url}/v1/embeddings", {"input": "a " * 999})[1])
        assert b'"model"' in shown[0]
        assert not [text for text in shown if str(directory).encode() in text]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SOON)
    assert str(directory) not in said


def test_stopped_while_it_loads(directory):
    command = [sys.executable, "-u", "-c", LOADING, "serve", str(directory), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert said == "interrupted\n"


# The command, which says when it begins to read a model, and takes its time.
LOADING = """
import signal, sys, time
from jaxpool import hub
from jaxpool.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if these tests are a shell's background job

def slow(*_):
    print("loading")
    time.sleep(60)

hub.resolve = slow
sys.exit(main(sys.argv[1:]))
"""


def test_quiet_if_asked(directory):
    with serving(directory, "--no-warmup", "--log-level", "error") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SOON)[1] == ""


def test_a_unix_socket_that_was_left(directory, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # and its process has ended
    command = [sys.executable, "-m", "jaxpool", "serve", str(directory), "--no-warmup", "--uds", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr.readline() == f"jaxpool answers on unix:{path} (Ctrl-C ends it)\n"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://server/health", timeout=SOON).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 0
    finally:
        process.kill()
        process.wait()
    assert not path.exists()


@pytest.fixture
def collector():
    """Python's garbage collector, which is left as it was."""
    thresholds = gc.get_threshold()
    yield gc
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_how_the_command_serves(tmp_path, monkeypatch, collector):
    told = {}
    monkeypatch.setattr("uvicorn.Server.run", lambda self, _: told.update(vars(self.config)))
    arguments = ["serve", str(tiny_bert(tmp_path / "tiny")), "--no-warmup", "--shutdown-timeout", "7", "--port", "0"]
    assert main(arguments) == 0
    assert collector.get_freeze_count() > 100_000  # JAX, the model and the application
    assert collector.get_threshold() == garbage.THRESHOLDS
    with TestClient(told["app"]) as client:  # which ends the model's threads
        assert client.get("/health").status_code == 200
    assert told["timeout_graceful_shutdown"] == 7
    assert told["timeout_keep_alive"] > 60  # what balancers wait before they drop an idle connection


MIDDLEWARE = """
class Stamp:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def stamped(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-stamp", b"ours"))
            await send(message)

        await self.app(scope, receive, stamped)


async def closed(request, call_next):
    if request.url.path == "/load":
        from starlette.responses import PlainTextResponse
        return PlainTextResponse("closed", 418)
    return await call_next(request)
"""


def test_middleware_and_docs(directory, tmp_path, monkeypatch, collector):
    (tmp_path / "users_own.py").write_text(MIDDLEWARE)
    monkeypatch.syspath_prepend(str(tmp_path))
    apps = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, _: apps.append(self.config.app))
    line = ["serve", str(directory), "--no-warmup", "--port", "0", "--served-model-name", "behind", "--api-key", "k"]
    assert (
        main([*line, "--middleware", "users_own.Stamp", "--middleware=users_own.closed", "--disable-fastapi-docs"]) == 0
    )
    with TestClient(apps[0]) as client:
        assert client.get("/load").status_code == 418  # before the key is asked for
        answer = client.get("/version")
        assert (answer.status_code, answer.headers["x-stamp"]) == (401, "ours")
        for path in ("/openapi.json", "/docs", "/redoc"):
            assert client.get(path, headers={"authorization": "Bearer k"}).status_code == 404
        assert client.get("/version", headers={"authorization": "Bearer k"}).status_code == 200
