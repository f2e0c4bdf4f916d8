"""`jaxpool serve`: its arguments, and what they make."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpool.server.serving import Serving

# vllm serve's arguments that go to `LLM` as they are: name -> type.
OF_LLM = {
    "task": str,
    "runner": str,
    "convert": str,
    "tokenizer": str,
    "dtype": str,
    "quantization": str,
    "max-model-len": int,
    "max-num-batched-tokens": int,
    "tensor-parallel-size": int,
    "data-parallel-size": int,
    "hf-token": str,
}
# Those that are JSON.
JSON_OF_LLM = ("hf-overrides", "mm-processor-kwargs", "pooler-config", "override-pooler-config")
# Those that change nothing here.
PASSED_OVER = {
    "max-num-seqs": int,
    "gpu-memory-utilization": float,
    "seed": int,
    "swap-space": float,
    "block-size": int,
    "load-format": str,
    "api-server-count": int,
}
FLAGS_PASSED_OVER = (
    "trust-remote-code",
    "enforce-eager",
    "disable-log-requests",
    "disable-log-stats",
    "enable-request-id-headers",
    "no-enable-prefix-caching",
)
# vLLM's: pictures of a prompt, unless said otherwise; and media that no model here takes.
MOST_IMAGES = 999
OTHER_MEDIA = ("video", "audio")
KEY_VARIABLES = ("JAXPOOL_API_KEY", "VLLM_API_KEY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the model."""
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="MODEL", dest="models", help="a further model; repeatable")
    add("--served-model-name", nargs="+", action="append", default=[], metavar="NAME",
        help="what clients call a model; several names are one model's, given again the next one's")  # fmt: skip
    add("--host", default="127.0.0.1", help="0.0.0.0 to be reached from elsewhere (default: %(default)s)")
    add("--port", type=int, default=8000)
    add("--uds", metavar="PATH", help="a Unix socket instead of host and port")
    add("--api-key", nargs="+", action="extend", default=[], metavar="KEY",
        help=f"of which a request has to bring one; or {' or '.join(KEY_VARIABLES)}")  # fmt: skip
    add("--allowed-origins", type=json.loads, default=[], metavar="JSON", help="web pages that may ask: '[\"*\"]'")
    add("--root-path", default="", help="in front of every path, behind a proxy")
    add("--ssl-keyfile", metavar="FILE")
    add("--ssl-certfile", metavar="FILE")
    add("--chat-template", metavar="FILE",
        help="a jinja template, a file of it, or the name of one of jaxpool's, for `messages`")  # fmt: skip
    add("--trust-request-chat-template", action="store_true", help="take templates from requests")
    add("--allowed-media-domains", nargs="+", action="extend", default=[], metavar="HOST",
        help="of http(s) URLs of pictures, '*.example.com' for all below it (default: none)")  # fmt: skip
    add("--allowed-local-media-path", type=Path, metavar="DIR", help="below which file:// URLs of pictures may read")
    add("--limit-mm-per-prompt", type=_json("limit-mm-per-prompt"), default={}, metavar="JSON",
        help="pictures of a prompt: '{\"image\": 4}' (default: 999)")  # fmt: skip
    add("--max-image-bytes", type=int, default=8 * 2**20, metavar="N", help="of a picture (default: %(default)s)")
    add("--max-image-pixels", type=int, default=2**25, metavar="N", help="of a picture (default: %(default)s)")
    add("--max-body-bytes", type=int, default=32 * 2**20, metavar="N", help="413 beyond it (default: %(default)s)")
    add("--max-client-batch-size", type=int, default=4096, metavar="N",
        help="inputs of a request; 413 beyond it (default: %(default)s)")  # fmt: skip
    add("--max-queued-tokens", type=int, default=1_000_000, metavar="N",
        help="that may wait; 429 beyond it (default: %(default)s)")  # fmt: skip
    add("--request-timeout", type=float, default=600.0, metavar="S",
        help="seconds within which a request has to begin; 504 beyond it (default: %(default)s)")  # fmt: skip
    add("--shutdown-timeout", type=int, default=60, metavar="S",
        help="seconds that requests in flight get after SIGTERM (default: %(default)s)")  # fmt: skip
    add("--keep-alive-timeout", type=int, default=75, metavar="S",
        help="seconds that an idle connection stays open (default: %(default)s)")  # fmt: skip
    add("--no-warmup", action="store_true", help="compile shapes when they are first needed")
    add("--otlp-traces-endpoint", metavar="URL", help="of an OpenTelemetry collector: http://host:4318/v1/traces")
    add("--compile-cache", nargs="?", const=True, default=False, metavar="DIR", help="keep compiled programs")
    for name, kind in OF_LLM.items():
        add(f"--{name}", type=kind, help="as LLM's")
    for name in JSON_OF_LLM:
        add(f"--{name}", type=_json(name), metavar="JSON", help="as LLM's")
    for name, kind in PASSED_OVER.items():
        add(f"--{name}", type=kind, help="accepted for vLLM's sake; changes nothing here")
    for name in FLAGS_PASSED_OVER:
        add(f"--{name}", action="store_true", help="accepted for vLLM's sake; changes nothing here")


def in_dashes(argv: Sequence[str]) -> list[str]:
    """`--hf_overrides` → `--hf-overrides`: both are vLLM's spellings."""
    found = []
    for word in argv:
        name, equals, value = word.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return found


def run(args: argparse.Namespace) -> None:
    """Loads the models and serves until SIGTERM or Ctrl-C.

    Raises:
        ImportError: the extra `server` is not installed.
        ValueError: arguments that do not go together, and as `LLM`.
    """
    try:
        import uvicorn

        from jaxpool.server import garbage, tracing
        from jaxpool.server.app import make_app
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'jaxpool[server]'") from error
    exporter = tracing.otlp(args.otlp_traces_endpoint) if args.otlp_traces_endpoint else None
    app = make_app(load(args), settings(args))
    if exporter is not None:
        tracing.install(app, exporter)
    garbage.collect_seldom()
    where: dict[str, Any] = {"uds": args.uds} if args.uds else {"host": args.host, "port": args.port}
    uvicorn.run(
        app,
        **where,
        log_level="warning" if args.log_level == "warning" else "info",
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        timeout_graceful_shutdown=args.shutdown_timeout,
        # Longer than the clients' and balancers' own 60 s or less: who sends on a connection that the server is just
        # closing sees a request fail.
        timeout_keep_alive=args.keep_alive_timeout,
        server_header=False,
    )


def load(args: argparse.Namespace) -> list[Serving]:
    """The models of the command line. Errors as `run`."""
    from jaxpool import LLM
    from jaxpool.server.serving import Serving

    models = [args.model, *args.models]
    names = args.served_model_name
    if len(names) > len(models):
        raise ValueError(f"--served-model-name is given {len(names)} times for {len(models)} models")
    limits = settings(args).limits
    given = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in (*OF_LLM, *JSON_OF_LLM)}
    arguments = {name: value for name, value in given.items() if value is not None}
    servings = []
    for number, model in enumerate(models):
        called = tuple(names[number]) if number < len(names) else (model,)
        llm = LLM(model, revision=args.revision, compile_cache=args.compile_cache, **arguments)
        servings.append(Serving(llm, called, limits))
    return servings


def settings(args: argparse.Namespace) -> Any:
    """`app.Settings` of the command line."""
    from jaxpool.server.app import Settings
    from jaxpool.server.chat import Chat
    from jaxpool.server.limits import Limits
    from jaxpool.server.pictures import Allowed

    from_variables = [os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)]
    return Settings(
        keys=args.api_key or from_variables,
        limits=Limits(
            body_bytes=args.max_body_bytes,
            texts=args.max_client_batch_size,
            queued_tokens=args.max_queued_tokens,
            timeout=args.request_timeout,
        ),
        chat=Chat(args.chat_template, args.trust_request_chat_template),
        pictures=Allowed(
            hosts=tuple(args.allowed_media_domains),
            directory=args.allowed_local_media_path,
            bytes=args.max_image_bytes,
            pixels=args.max_image_pixels,
            per_prompt=_images(args.limit_mm_per_prompt),
        ),
        origins=args.allowed_origins,
        root_path=args.root_path,
        warm=not args.no_warmup,
    )


def _images(limits: Mapping[str, Any]) -> int:
    """The pictures of a prompt that vLLM's `limit_mm_per_prompt` allows; what it says of other media has no meaning."""
    if unknown := sorted(set(limits) - {"image", *OTHER_MEDIA}):
        raise ValueError(f"--limit-mm-per-prompt: {unknown} are not known, expected 'image'")
    count = limits.get("image", MOST_IMAGES)
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"--limit-mm-per-prompt: 'image' is {count!r}, expected a number")
    return count


def _json(name: str) -> Any:
    def parse(text: str) -> Any:
        source = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
        try:
            found = json.loads(source)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(f"--{name} is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise argparse.ArgumentTypeError(f"--{name}: expected a JSON object, got {type(found).__name__}")
        return found

    return parse
