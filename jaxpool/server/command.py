"""`jaxpool serve`: what its flags make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jaxpool.server.flags import KEY_VARIABLES, OF_EACH, check_passed_over, dashed

if TYPE_CHECKING:
    from jaxpool.server.app import Settings
    from jaxpool.server.chat import Chat
    from jaxpool.server.serving import Serving

# vLLM's: pictures of a prompt, unless said otherwise; and media that no model here takes.
MOST_IMAGES = 999
OTHER_MEDIA = ("video", "audio")
# FastAPI's pages of the API, which --disable-fastapi-docs takes away.
DOCS = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})


def run(args: argparse.Namespace) -> None:
    """Loads the models and serves until SIGTERM or Ctrl-C.

    Raises:
        ImportError: the extra `server` is not installed.
        ValueError: arguments that do not go together, and as `LLM`.
        OSError: an address that cannot be had, and as `LLM`.
    """
    try:
        import uvicorn

        from jaxpool.server import garbage, listening, middleware, tracing
        from jaxpool.server.app import make_app
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'jaxpool[server]'") from error
    # What can be wrong is looked at before the models are loaded, which takes its time.
    listening.check_tls(args)
    in_front = [middleware.find(name) for name in args.middleware]
    exporter = tracing.otlp(args.otlp_traces_endpoint) if args.otlp_traces_endpoint else None
    with listening.taken(args) as sockets:
        servings, how = load(args)
        app = make_app(servings, how)
        middleware.install(app, in_front)
        if args.disable_fastapi_docs:
            app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in DOCS]
        if exporter is not None:
            tracing.install(app, exporter)
        garbage.collect_seldom()
        told = [f"{serving.name}: {', '.join(serving.recipe.tasks)}" for serving in servings]
        config = uvicorn.Config(app, **listening.settings(args))
        server = listening.Server(config, None if args.log_level == "error" else told)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again once all is closed
            server.run(sockets)


def models(args: argparse.Namespace) -> list[str]:
    """The models of the command line.

    Raises:
        ValueError: there is none.
    """
    found = [model for model in (args.model, *args.models) if model is not None]
    if not found:
        raise ValueError("give a MODEL: a directory, or a name on the Hugging Face hub")
    return found


def load(args: argparse.Namespace) -> tuple[list[Serving], Settings]:
    """The models of the command line, and how they are served. Errors as `run`."""
    from jaxpool import LLM
    from jaxpool.server.serving import Serving

    check_passed_over(args)
    named, how = models(args), settings(args)
    names, arguments = served_names(named, args.served_model_name), of_each(args, len(named))
    shared = {"trust_remote_code": args.trust_remote_code, "compile_cache": args.compile_cache}
    return [
        Serving(LLM(model, **shared, **own), called, how.limits)
        for model, called, own in zip(named, names, arguments, strict=True)
    ], how


def of_each(args: argparse.Namespace, count: int) -> list[dict[str, Any]]:
    """`LLM`'s arguments of each of `count` models: what is given once is all models', or one model's of one.

    Raises:
        ValueError: an argument that is given neither once nor once a model.
    """
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for name in OF_EACH:
        given = getattr(args, name)
        if count == 1:
            given = given[-1:]  # as argparse, and so vLLM, has it
        if len(given) not in (0, 1, count):
            raise ValueError(
                f"{dashed(name)} is given {len(given)} times for {count} models: give it once for all of them, or once "
                "a model, in their order"
            )
        for own, value in zip(found, given * count if len(given) == 1 else given, strict=False):
            if value is not None:
                own[name] = value
    return found


def served_names(models: Sequence[str], given: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """What each model is called.

    Raises:
        ValueError: more names than models, or two models of one name.
    """
    from jaxpool.server.registry import check_names, default_name

    if len(models) == 1:
        given = given[-1:]  # as argparse, and so vLLM, has it
    if len(given) > len(models):
        raise ValueError(f"--served-model-name is given {len(given)} times for {len(models)} models")
    unsaid = [(default_name(model),) for model in models[len(given) :]]
    return check_names([*map(tuple, given), *unsaid])


def settings(args: argparse.Namespace) -> Settings:
    """`app.Settings` of the command line. Errors as `run`."""
    from jaxpool.server.app import Pages, Settings
    from jaxpool.server.limits import Limits
    from jaxpool.server.pictures import Allowed

    # One that is empty is none: `--api-key "$UNSET"`.
    given, from_variables = filter(None, args.api_key), filter(None, map(os.environ.get, KEY_VARIABLES))
    return Settings(
        keys=[*given] or [*from_variables],
        limits=Limits(
            body_bytes=args.max_body_bytes,
            texts=args.max_client_batch_size,
            queued_tokens=args.max_queued_tokens,
            timeout=args.request_timeout,
            batch_timeout=args.batch_timeout,
        ),
        chat=_chat(args),
        pictures=Allowed(
            hosts=tuple(args.allowed_media_domains),
            directory=args.allowed_local_media_path,
            bytes=args.max_image_bytes,
            pixels=args.max_image_pixels,
            per_prompt=_images(args.limit_mm_per_prompt),
        ),
        pages=Pages(args.allowed_origins, args.allowed_methods, args.allowed_headers, args.allow_credentials),
        root_path=args.root_path,
        warm=not args.no_warmup,
    )


def _chat(args: argparse.Namespace) -> Chat:
    """How conversations are read; a template's file is read here, once, and has to be one."""
    from jaxpool.chat_templates import check_syntax, read_template
    from jaxpool.image_chat_templates import own_template
    from jaxpool.server.chat import Chat

    template = args.chat_template
    if template is not None and own_template(template) is None:
        try:
            template = check_syntax(read_template(template))
        except (ValueError, OSError) as error:
            raise ValueError(f"--chat-template: {error}") from None
    return Chat(
        template,
        args.trust_request_chat_template,
        content_format=args.chat_template_content_format,
        values=args.default_chat_template_kwargs,
    )


def _images(limits: Mapping[str, Any]) -> int:
    """The pictures of a prompt that vLLM's `limit_mm_per_prompt` allows; what it says of other media has no meaning."""
    if unknown := sorted(set(limits) - {"image", *OTHER_MEDIA}):
        raise ValueError(f"--limit-mm-per-prompt: {unknown} are not known, expected 'image'")
    count = limits.get("image", MOST_IMAGES)
    if isinstance(count, dict):  # vLLM's newer form, which also says how large pictures are for its profiling
        count = count.get("count", MOST_IMAGES)
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"--limit-mm-per-prompt: 'image' is {count!r}, expected a number")
    return count
