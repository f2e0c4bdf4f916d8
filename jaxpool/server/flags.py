"""The flags of `jaxpool serve`: its own, those of `vllm serve`'s that it honours, and those that it passes over."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpool.server.spelling import (
    counts,
    json_list,
    json_object,
    json_or_text,
    text_or_none,
    whole_number,
    whole_number_or_auto,
)
from jaxpool.vllm_arguments import ARGUMENTS, FLAG, ONE, SERVED, SEVERAL, pass_over

# `LLM`'s arguments: once for all models, or once a model, in their order. Name -> what reads a value.
OF_EACH: Mapping[str, Any] = {
    "task": text_or_none,
    "runner": text_or_none,
    "convert": text_or_none,
    "tokenizer": text_or_none,
    "revision": text_or_none,
    "dtype": text_or_none,
    "quantization": text_or_none,
    "max_model_len": whole_number_or_auto,
    "max_num_batched_tokens": whole_number_or_auto,
    "tensor_parallel_size": whole_number,
    "data_parallel_size": whole_number,
    "hf_token": text_or_none,
    "hf_overrides": json_object,
    "mm_processor_kwargs": json_object,
    "pooler_config": json_object,
    "override_pooler_config": json_object,
}
_SHORT = {
    "tensor_parallel_size": "-tp",
    "data_parallel_size": "-dp",
    "quantization": "-q",
    "pipeline_parallel_size": "-pp",
    "prefill_context_parallel_size": "-pcp",
    "decode_context_parallel_size": "-dcp",
    "data_parallel_address": "-dpa",
    "data_parallel_backend": "-dpb",
    "data_parallel_external_lb": "-dpe",
    "data_parallel_hybrid_lb": "-dph",
    "data_parallel_rank": "-dpn",
    "data_parallel_rpc_port": "-dpp",
    "data_parallel_size_local": "-dpl",
    "data_parallel_start_rank": "-dpr",
    "enable_expert_parallel": "-ep",
    "attention_config": "-ac",
    "compilation_config": "-cc",
    "speculative_config": "-sc",
    "optimization_level": "-O",
    "nnodes": "-n",
    "node_rank": "-r",
    "api_server_count": "-asc",
}
# What argparse is told of each form of vLLM's that is passed over.
_FORMS: Mapping[str, dict[str, Any]] = {
    FLAG: {"action": argparse.BooleanOptionalAction},
    ONE: {"type": json_or_text},
    SEVERAL: {"type": json_or_text, "nargs": "*"},
}
_SECONDS = (
    ("--request-timeout", float, 600.0, "within which a request has to begin; 504 beyond it"),
    ("--batch-timeout", float, 600.0, "after which a batch that the device keeps is lost"),
    ("--shutdown-timeout", int, 60, "that requests in flight get after SIGTERM"),
    ("--keep-alive-timeout", int, 75, "that an idle connection stays open"),
)
UVICORN_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
LOCAL = "127.0.0.1"
KEY_VARIABLES = ("JAXPOOL_API_KEY", "VLLM_API_KEY")


def dashed(name: str) -> str:
    """`hf_overrides` → `--hf-overrides`."""
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the model."""
    _add_own(parser)
    for name, kind in OF_EACH.items():
        own: dict[str, Any] = {"metavar": "JSON"} if kind is json_object else {}
        if name == "hf_token":
            own["nargs"] = "?"  # vLLM's: alone it means the one that is stored, which is read anyway
        parser.add_argument(*_spellings(name), type=kind, action="append", default=[], help="as LLM's", **own)
    for name, argument in ARGUMENTS.items():
        if argument.whose != SERVED:
            parser.add_argument(
                *_spellings(name), default=argparse.SUPPRESS, help=argparse.SUPPRESS, **_FORMS[argument.form]
            )


def check_passed_over(args: argparse.Namespace) -> None:
    """Says which of vLLM's flags change nothing here.

    Raises:
        ValueError: a flag that would change the answer, and is not supported.
    """
    given = {
        name: getattr(args, name) for name, own in ARGUMENTS.items() if own.whose != SERVED and hasattr(args, name)
    }
    pass_over(given, dashed)


def _spellings(name: str) -> list[str]:
    return [dashed(name), *([_SHORT[name]] if name in _SHORT else [])]


def _add_own(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="MODEL", dest="models", help="a further model; repeatable")
    add("--served-model-name", nargs="+", action="append", default=[], metavar="NAME",
        help="what clients call a model; several names are one model's, given again the next one's")  # fmt: skip
    add("--trust-remote-code", action=argparse.BooleanOptionalAction, default=False, help="as LLM's: of no effect")
    add("--host", type=_host, default=LOCAL, help="0.0.0.0 to be reached from elsewhere (default: %(default)s)")
    add("--port", type=_port, default=8000, help="0: any that is free (default: %(default)s)")
    add("--uds", type=text_or_none, metavar="PATH", help="a Unix socket instead of host and port")
    add("--api-key", type=text_or_none, nargs="+", action="extend", default=[], metavar="KEY",
        help=f"of which a request has to bring one; or {' or '.join(KEY_VARIABLES)}")  # fmt: skip
    add("--allowed-origins", type=json_list, default=[], metavar="JSON", help="web pages that may ask: '[\"*\"]'")
    for name, what in (("methods", "that they may use"), ("headers", "that they may send")):
        add(f"--allowed-{name}", type=json_list, default=["*"], metavar="JSON", help=f"{what} (default: all)")
    add("--allow-credentials", action=argparse.BooleanOptionalAction, default=False, help="their cookies too")
    add("--root-path", type=_prefix, default="", help="in front of every path, behind a proxy")
    add("--middleware", action="append", default=[], metavar="MODULE.NAME",
        help="an ASGI middleware's class, or a function as FastAPI's, in front of all; repeatable")  # fmt: skip
    add(
        "--disable-fastapi-docs",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="no /openapi.json, no /docs",
    )
    for name in ("keyfile", "certfile", "ca-certs"):
        add(f"--ssl-{name}", type=_file, metavar="FILE", help="of TLS")
    add("--ssl-cert-reqs", type=int, choices=(0, 1, 2), default=0,
        help="whether clients need a certificate: no, may, must (default: %(default)s)")  # fmt: skip
    add("--ssl-ciphers", type=text_or_none, metavar="LIST", help="OpenSSL's list, for TLS 1.2 and below")
    add("--uvicorn-log-level", choices=UVICORN_LEVELS, help="of the HTTP server's own log (default: --log-level)")
    add("--disable-uvicorn-access-log", action=argparse.BooleanOptionalAction, default=False,
        help="no line a request, which level info has")  # fmt: skip
    add("--log-config-file", type=_file, metavar="FILE", help="of Python's logging: JSON")
    add("--chat-template", type=text_or_none, metavar="FILE",
        help="a jinja template, a file of it, or the name of one of jaxpool's, for `messages`")  # fmt: skip
    add("--chat-template-content-format", choices=("auto", "string", "openai"), default="auto",
        help="whether templates get contents as texts or as lists of parts (default: as they read them)")  # fmt: skip
    add("--default-chat-template-kwargs", type=json_object, default={}, metavar="JSON",
        help="for templates, under a request's own `chat_template_kwargs`")  # fmt: skip
    add("--trust-request-chat-template", action=argparse.BooleanOptionalAction, default=False,
        help="take templates from requests")  # fmt: skip
    add("--allowed-media-domains", nargs="+", action="extend", default=[], metavar="HOST",
        help="of http(s) URLs of pictures, '*.example.com' for all below it (default: none)")  # fmt: skip
    add(
        "--allowed-local-media-path",
        type=_directory,
        metavar="DIR",
        help="below which file:// URLs of pictures may read",
    )
    add("--limit-mm-per-prompt", type=counts, default={}, metavar="JSON",
        help="pictures of a prompt: '{\"image\": 4}' (default: 999)")  # fmt: skip
    add("--max-image-bytes", type=int, default=8 * 2**20, metavar="N", help="of a picture (default: %(default)s)")
    add("--max-image-pixels", type=int, default=2**25, metavar="N", help="of a picture (default: %(default)s)")
    add("--max-body-bytes", type=int, default=32 * 2**20, metavar="N", help="413 beyond it (default: %(default)s)")
    add("--max-client-batch-size", type=int, default=4096, metavar="N",
        help="inputs of a request; 413 beyond it (default: %(default)s)")  # fmt: skip
    add("--max-queued-tokens", type=int, default=1_000_000, metavar="N",
        help="that may wait; 429 beyond it (default: %(default)s)")  # fmt: skip
    for name, kind, default, what in _SECONDS:
        add(name, type=kind, default=default, metavar="S", help=f"seconds {what} (default: %(default)s)")
    add("--no-warmup", action="store_true", help="compile shapes when they are first needed")
    add(
        "--otlp-traces-endpoint",
        type=text_or_none,
        metavar="URL",
        help="of an OpenTelemetry collector: http://host:4318/v1/traces",
    )
    add("--compile-cache", nargs="?", const=True, default=False, metavar="DIR", help="keep compiled programs")


def _host(text: str) -> str:
    return text_or_none(text) or LOCAL


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 … 65535")
    return int(text)


def _prefix(text: str) -> str:
    path = text.strip("/")
    return f"/{path}" if path else ""


def _file(text: str) -> str | None:
    if text_or_none(text) is None:
        return None
    if not os.access(text, os.R_OK) or not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no file that can be read")
    return text


def _directory(text: str) -> Path | None:
    return None if text_or_none(text) is None else Path(text)
