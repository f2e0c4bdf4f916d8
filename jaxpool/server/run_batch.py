"""`jaxpool run-batch`: a file of requests in OpenAI's batch format, answered by the server's own endpoints in process.

Each line `{"custom_id", "method": "POST", "url", "body"}` gives a line `{"id", "custom_id", "response", "error"}`, in
the same order. `response` holds the status and the body that the server would have sent; `error` is for lines that
were no request. What this needs is imported when it runs, so that `-h` does not wait for JAX.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from jaxpool.server import command, flags
from jaxpool.whole import whole_file

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

# A request's fields -> what they are.
FIELDS = {"custom_id": str, "method": str, "url": str, "body": dict}


class LineError(ValueError):
    """A line that is no request.

    Args:
        message: why.
        custom_id: of the line, if it has one.
    """

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


@dataclass
class Counts:
    """Lines by what became of them.

    Attributes:
        answered: with a status below 400.
        refused: with another.
        broken: that were no request.
    """

    answered: int = 0
    refused: int = 0
    broken: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the model. Those of `serve` are all taken, so that one command line's arguments do for both."""
    add = parser.add_argument
    add("-i", "--input-file", type=Path, required=True, metavar="IN", help="a .jsonl of requests")
    add("-o", "--output-file", type=Path, required=True, metavar="OUT", help="a .jsonl of answers, replaced when whole")
    add("--max-concurrent", type=int, default=256, metavar="N", help="requests at a time (default: %(default)s)")
    flags.add_arguments(parser)


def run(args: argparse.Namespace) -> str:
    """Answers a file of requests.

    Returns:
        A line that says what was done.

    Raises:
        ImportError: the extra `server` is not installed.
        ValueError: arguments that do not go together, and as `LLM`.
        OSError: a file that cannot be read or written.
    """
    if args.max_concurrent < 1:
        raise ValueError(f"--max-concurrent is {args.max_concurrent}, expected at least 1")
    try:
        from jaxpool.server.app import Pages, make_app
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'jaxpool[server]'") from error
    # What waits is bounded by the requests at a time: none of them shall be sent away, or be too late.
    lifted = {"max_queued_tokens": sys.maxsize, "request_timeout": None, "batch_timeout": math.inf}
    args = argparse.Namespace(**(vars(args) | lifted))
    with args.input_file.open("rb") as lines, whole_file(args.output_file) as path, path.open("wb") as out:
        servings, how = command.load(args)
        app = make_app(servings, replace(how, keys=(), pages=Pages(), root_path="", warm=False))
        counts = asyncio.run(answer_lines(app, lines, out, args.max_concurrent))
    return f"{counts.answered} answered, {counts.refused} refused, {counts.broken} broken lines -> {args.output_file}"


async def answer_lines(app: Any, lines: Iterable[bytes], out: IO[bytes], at_once: int) -> Counts:
    """Answers requests in order, some of them at the same time.

    Args:
        app: as `make_app` makes it; it is started, and ended.
        lines: one request each; blank ones are passed over.
        out: gets an answer each.
        at_once: most requests that are under way.
    """
    counts = Counts()
    waiting: deque[asyncio.Task[bytes]] = deque()
    async with app.router.lifespan_context(app):
        try:
            for line in filter(bytes.strip, lines):
                if len(waiting) == at_once:
                    out.write(await waiting.popleft())
                waiting.append(asyncio.create_task(_answer(app, line, counts)))
            while waiting:
                out.write(await waiting.popleft())
        finally:
            for task in waiting:
                task.cancel()
    return counts


async def _answer(app: ASGIApp, line: bytes, counts: Counts) -> bytes:
    import orjson

    name = f"batch_req_{uuid.uuid4().hex}"
    custom_id, response, error = None, None, None
    try:
        custom_id, url, body = parse_line(line)
        status, request_id, content = await _ask(app, url, body)
        # The bytes that the endpoint wrote, without reading and writing their floats again.
        response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(content)}
        counts.answered, counts.refused = counts.answered + (status < 400), counts.refused + (status >= 400)
    except LineError as wrong:
        custom_id, error = wrong.custom_id, {"code": "invalid_line", "message": str(wrong)}
        counts.broken += 1
    found = {"id": name, "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)


def parse_line(line: bytes) -> tuple[str, str, bytes]:
    """A line's `custom_id`, `url`, and `body` as JSON.

    Raises:
        LineError: no request; the message says why.
    """
    import orjson

    try:
        given = orjson.loads(line)
    except ValueError as error:
        raise LineError(f"no JSON: {error}") from None
    if not isinstance(given, dict):
        raise LineError(f"expected an object, got {type(given).__name__}")
    custom_id = given.get("custom_id")
    custom_id = custom_id if isinstance(custom_id, str) else None
    given.setdefault("method", "POST")
    for field, kind in FIELDS.items():
        if not isinstance(given.get(field), kind):
            raise LineError(f"`{field}`: expected {kind.__name__}, got {type(given.get(field)).__name__}", custom_id)
    if given["method"] != "POST":
        raise LineError(f"`method` is {given['method']!r}, expected 'POST'", custom_id)
    if not given["url"].startswith("/"):
        raise LineError(f"`url` is {given['url']!r}, expected a path such as '/v1/embeddings'", custom_id)
    if str(given["body"].get("encoding_format", "")).startswith("bytes"):
        raise LineError("`encoding_format`: bytes do not fit into a line; 'base64' does", custom_id)
    return given["custom_id"], given["url"], orjson.dumps(given["body"])


async def _ask(app: ASGIApp, url: str, body: bytes) -> tuple[int, str, bytes]:
    """One request, as an HTTP server would hand it to the application; its status, its id and its body."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not messages:
            await asyncio.get_running_loop().create_future()  # the client stays until it is answered
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    path, _, query = url.partition("?")
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
    try:
        await app(scope, receive, send)
    except Exception:
        # Starlette answers 500, and then raises for the server's log, where it stands already.
        if not sent:
            raise
    # A 500 is answered outside of what gives requests their ids.
    request_id = dict(sent[0]["headers"]).get(b"x-request-id", b"").decode() or uuid.uuid4().hex
    return sent[0]["status"], request_id, b"".join(message.get("body", b"") for message in sent[1:]) or b"null"
