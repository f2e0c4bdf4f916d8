"""OpenTelemetry: a span a request, in the trace that the client's `traceparent` names. The extra `otel`."""

from __future__ import annotations

import os
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxpool.server.routes.operations import is_open

# A span's attribute -> what endpoints and the gate keep of a request.
_OF_STATE = {
    "gen_ai.request.model": "model",
    "gen_ai.request.id": "request_id",
    "gen_ai.usage.input_tokens": "tokens",
}


def install(app: Starlette, exporter: Any) -> Any:
    """Traces an application's requests; its spans go to an exporter, in batches, from another thread.

    Returns:
        The `TracerProvider`: its `shutdown()` sends what is left, which it also does when the process ends.
    """
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    called = os.environ.get("OTEL_SERVICE_NAME", "jaxpool")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: called}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    app.add_middleware(Tracing, provider=provider)
    return provider


def otlp(endpoint: str) -> Any:
    """An exporter to a collector.

    Args:
        endpoint: the whole URL, `http://host:4318/v1/traces`.

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'jaxpool[otel]'") from error
    return OTLPSpanExporter(endpoint=endpoint)


class Tracing:
    """ASGI middleware, outside of all others, so that refused requests have spans too.

    Args:
        app: what is behind it.
        provider: makes the tracer.
    """

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = provider.get_tracer("jaxpool.server")
        self._read_parent = TraceContextTextMapPropagator().extract
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        # Probes come every few seconds and tell nothing.
        if scope["type"] != "http" or is_open(scope):
            await self._app(scope, receive, send)
            return
        parent = self._read_parent(dict(Headers(scope=scope)))
        method = scope["method"]
        asked = {"http.request.method": method, "url.path": scope["path"]}
        with self._tracer.start_as_current_span(method, parent, self._kind, asked) as span:

            async def tell(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(self._failed)
                await send(message)

            try:
                await self._app(scope, receive, tell)
            except Exception:  # Starlette answers it further out than any middleware
                span.set_attribute("http.response.status_code", 500)
                raise
            finally:
                # Known only now: which endpoint it was, and what it said of the request.
                if route := getattr(scope.get("route"), "path", None):
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                state = scope.get("state", {})
                for attribute, name in _OF_STATE.items():
                    if name in state:
                        span.set_attribute(attribute, state[name])
