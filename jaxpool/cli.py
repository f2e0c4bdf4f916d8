"""The command line: `jaxpool embed`, `serve`, `run-batch`, `info`, `plan`, `convert`.

What a command needs is imported inside it, so that `--version` and `-h` do not wait for JAX.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxpool.corpus import command
from jaxpool.log import logger, set_level
from jaxpool.server import command as serve
from jaxpool.server import flags, run_batch, spelling

# What a user's arguments and files can cause. Anything else is a bug, and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError)

OK, FAILED, INTERRUPTED = 0, 2, 130
# Commands that are vLLM's too, and take its spellings -> how they are used, in short: their flags are many.
LIKE_VLLM = {
    "serve": "%(prog)s [MODEL] [FLAG …]   (%(prog)s -h lists the flags)",
    "run-batch": "%(prog)s [MODEL] -i IN -o OUT [FLAG …]   (%(prog)s -h lists the flags)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments; None for the process's own.

    Returns:
        The exit status: 0, 2 for an error that the user can put right, 130 after Ctrl-C.

    Raises:
        SystemExit: from argparse, for `-h`, `--version` and arguments that it does not understand (status 2).
    """
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(spelling.as_argparse(argv) if LIKE_VLLM.keys() & set(argv[:3]) else argv)
    set_level(args.log_level)
    try:
        return args.command(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        logger.debug("where the error came from:", exc_info=True)
        print(f"jaxpool: error: {error}", file=sys.stderr)
        return FAILED


def _embed(args: argparse.Namespace) -> int:
    command.run(args)
    return OK


def _serve(args: argparse.Namespace) -> int:
    serve.run(args)
    return OK


def _run_batch(args: argparse.Namespace) -> int:
    print(run_batch.run(args))
    return OK


def _info(args: argparse.Namespace) -> int:
    import json

    from jaxpool import hub
    from jaxpool.inspection import inspect

    found = inspect(hub.resolve(args.model, args.revision), args.dtype)
    print(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if args.json else found.as_text())
    return OK if found.problem is None else FAILED


def _plan(args: argparse.Namespace) -> int:
    import json
    from dataclasses import replace

    from jaxpool import hub
    from jaxpool.ahead import missing
    from jaxpool.llm import resolve_dtype
    from jaxpool.plan import plan_slice, with_compiled
    from jaxpool.quantization import check_kind
    from jaxpool.recipe import read_recipe
    from jaxpool.slices import Slice

    where = Slice.parse(args.topology)
    recipe = replace(read_recipe(hub.resolve(args.model, args.revision)), quantization=check_kind(args.quantization))
    dtype = resolve_dtype(args.dtype, where.chip.platform, recipe.quantization)
    found = plan_slice(recipe, dtype, where)
    able = found.best is not None and missing(where.chip.platform) is None
    if args.compile or (args.compile is None and able):
        logger.warning("compiling the program for %s, which can take minutes; --no-compile leaves it out", where)
        try:
            found = with_compiled(found, recipe, dtype)
        except ValueError as error:
            if args.compile:
                raise
            logger.warning("not compiled, so this is the estimate alone: %s", error)
    print(json.dumps(found.as_json(), indent=2) if args.json else found.as_text())
    return OK if found.best else FAILED


def _convert(args: argparse.Namespace) -> int:
    from jaxpool import hub
    from jaxpool.convert import to_flax, to_hf

    recipe = (to_hf if args.to_hf else to_flax)(hub.resolve(args.model, args.revision), args.output)
    print(f"{recipe.architecture} with {'PyTorch' if args.to_hf else 'Flax'} names -> {args.output}")
    return OK


def make_parser() -> argparse.ArgumentParser:
    """The arguments of all commands; each sets `command` to the function that runs it."""
    parser = argparse.ArgumentParser(prog="jaxpool", description="Embedding models in JAX.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_log_level(parser, "warning")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, (summary, run, arguments) in COMMANDS.items():
        own = commands.add_parser(name, help=summary, description=summary, usage=LIKE_VLLM.get(name))
        if name in LIKE_VLLM:
            own.epilog = (
                "vllm serve's other flags are taken too (docs/server.md): what would change the answer is refused."
            )
        own.set_defaults(command=run)
        # vLLM's say it with --model too, and theirs is a revision a model.
        number = "?" if name in LIKE_VLLM else None
        own.add_argument("model", metavar="MODEL", nargs=number, help="a directory, or a name on the Hugging Face hub")
        if name not in LIKE_VLLM:
            own.add_argument("--revision", metavar="R", help="branch, tag or commit on the hub")
        arguments(own)
        # After the command too; SUPPRESS, or the default here would overwrite what came before the command.
        _add_log_level(own, argparse.SUPPRESS)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"jaxpool {version('jaxpool')}")
        parser.exit()


def _add_log_level(parser: argparse.ArgumentParser, default: str) -> None:
    levels = ("debug", "info", "warning", "error")
    parser.add_argument(
        "--log-level", choices=levels, default=default, help="what to report on stderr (default: warning)"
    )


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, or auto (the default): float32 on CPU, else bfloat16"
    )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quantization", metavar="KIND", help="int8 (W8A8), or int8_weight_only")


def _embed_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_arguments(parser)
    _add_dtype(parser)
    _add_quantization(parser)


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    _add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", metavar="KIND:SHAPE", required=True, help="v5e:4x8, v5p:2x2x2, h100:1, …")
    _add_dtype(parser)
    _add_quantization(parser)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="put the compiled program's own figures beside the estimate (default: where its compiler is there)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="a directory that is empty or not there"
    )
    parser.add_argument("--to-hf", action="store_true", help="write PyTorch names, from a converted model or any other")


Command = tuple[str, Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None]]

# Name -> what it does in a line, what runs it, what adds its arguments.
COMMANDS: dict[str, Command] = {
    "embed": ("embed files of texts", _embed, _embed_arguments),
    "serve": ("answer OpenAI's, vLLM's, Cohere's and TEI's clients over HTTP", _serve, flags.add_arguments),
    "run-batch": ("answer a file of requests in OpenAI's batch format", _run_batch, run_batch.add_arguments),
    "info": ("print a model's recipe and memory plan, and whether its weights fit", _info, _info_arguments),
    "plan": ("work out on which meshes of a slice a model fits, without loading it", _plan, _plan_arguments),
    "convert": ("write a model with its weights as a Flax param tree, or back", _convert, _convert_arguments),
}
