"""OpenTelemetry: a span a request, in the client's trace, with what is known of the request; nothing where not asked."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from jaxpool import LLM
from jaxpool.cli import main
from jaxpool.server import tracing
from jaxpool.server.app import Settings, make_app
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving
from tests.tiny import tiny_bert

pytest.importorskip("opentelemetry.sdk", reason="needs pip install 'jaxpool[otel]'")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """(client, the spans that its requests have left since it was last asked)."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    llm = LLM(tiny_bert(tmp_path_factory.mktemp("model") / "tiny"))
    app = make_app([Serving(llm, ("traced",), Limits())], Settings(keys=["k"], warm=False))
    exporter = InMemorySpanExporter()
    provider = tracing.install(app, exporter)

    def spans():
        provider.force_flush()
        found = exporter.get_finished_spans()
        exporter.clear()
        return found

    with TestClient(app, raise_server_exceptions=False, headers={"Authorization": "Bearer k"}) as client:
        yield client, spans
    provider.shutdown()


def test_a_span_says_what_the_request_was(traced):
    client, spans = traced
    answer = client.post("/v1/embeddings", json={"input": ["one text", "another"]}, headers={"x-request-id": "mine"})
    (span,) = spans()
    assert span.name == "POST /v1/embeddings"
    assert span.kind.name == "SERVER"
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "url.path": "/v1/embeddings",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "gen_ai.request.model": "traced",
        "gen_ai.request.id": "mine",
        "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
    }
    assert span.parent is None
    assert span.resource.attributes["service.name"] == "jaxpool"


def test_it_belongs_to_the_clients_trace(traced):
    client, spans = traced
    client.get("/version", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    client.get("/version", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})  # the client does not sample it
    client.get("/version", headers={"traceparent": "nonsense"})
    ours, alone = spans()
    assert format(ours.context.trace_id, "032x") == TRACE
    assert format(ours.parent.span_id, "016x") == PARENT
    assert alone.parent is None


@pytest.mark.parametrize(
    ("path", "key", "status", "name"),
    [("/version", "other", 401, "GET"), ("/nothing", "k", 404, "GET"), ("/version", "k", 200, "GET /version")],
)
def test_refused_requests_have_spans_too(traced, path, key, status, name):
    client, spans = traced
    client.get(path, headers={"Authorization": f"Bearer {key}"})
    (span,) = spans()
    assert (span.name, span.attributes["http.response.status_code"]) == (name, status)
    assert span.status.status_code.name == "UNSET", "the client's fault is no error of the server's"


def test_a_failure_is_an_error(traced, monkeypatch):
    client, spans = traced
    monkeypatch.setattr("jaxpool.server.scheduler.Scheduler.submit", lambda *_: 1 / 0)
    assert client.post("/v1/embeddings", json={"input": "one text"}).status_code == 500
    (span,) = spans()
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["http.response.status_code"] == 500


def test_probes_have_none(traced):
    client, spans = traced
    assert client.get("/health").status_code == 200
    assert not spans()


@pytest.mark.parametrize("prefix", ["", "/api"], ids=["taken away", "kept"])
def test_probes_behind_a_proxy_have_none(prefix):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    app, exporter, provider = FastAPI(), InMemorySpanExporter(), TracerProvider()
    app.root_path = "/api"
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app.add_middleware(tracing.Tracing, provider=provider)
    client = TestClient(app)
    client.get(f"{prefix}/health")
    assert not exporter.get_finished_spans()
    client.get(f"{prefix}/version")
    (span,) = exporter.get_finished_spans()
    assert span.attributes["url.path"] == f"{prefix}/version"


def test_they_go_to_a_collector():
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    from starlette.applications import Starlette

    app = Starlette()
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        provider = tracing.install(app, tracing.otlp(f"http://127.0.0.1:{collector.server_port}/v1/traces"))
        TestClient(app).get("/somewhere")
        provider.shutdown()
        collector.shutdown()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"/somewhere" in body


@pytest.mark.parametrize("flag", [[], ["--otlp-traces-endpoint", "http://127.0.0.1:9/v1/traces"]])
def test_the_command_lines_flag(tmp_path, monkeypatch, flag):
    apps = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, _: apps.append(self.config.app))
    assert (
        main(
            [
                "serve",
                str(tiny_bert(tmp_path / "tiny")),
                "--served-model-name",
                f"flag{len(flag)}",
                "--no-warmup",
                "--port",
                "0",
                *flag,
            ]
        )
        == 0
    )
    (app,) = apps
    assert [m.cls for m in app.user_middleware].count(tracing.Tracing) == bool(flag)
    with TestClient(app) as client:  # which ends the model's threads
        assert client.get("/health").status_code == 200


def test_nothing_is_imported_unasked():
    code = "import sys, jaxpool.server.app, jaxpool.server.tracing; assert 'opentelemetry.sdk' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
