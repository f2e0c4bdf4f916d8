"""`jaxpool embed`: its arguments, and which of the two kinds of output they mean.

What it needs is imported when it runs, so that `-h` does not wait for JAX.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpool.corpus.embedding import Embedder
    from jaxpool.llm import LLM

# Seconds from SIGTERM to the end, if nothing else is said: clouds give 25 to 30.
GRACE = 20.0

# What only a directory of shards understands, by the argument's name -> its flag.
_FOR_DIRECTORIES = {
    "format": "--format",
    "shard_rows": "--shard-rows",
    "resume": "--resume",
    "on_error": "--on-error",
    "grace": "--grace",
}


def run(args: argparse.Namespace) -> None:
    """Embeds, and prints a line that says what was done.

    Raises:
        ValueError, OSError, ImportError: what the user can put right.
        KeyboardInterrupt: Ctrl-C.
    """
    from jaxpool.corpus.report import open_log

    with open_log(args.log_json) as log:
        if "://" in args.output:
            raise ValueError(f"output {args.output}: is a URL; write to a disk, then copy")
        if args.output.endswith(("/", os.sep)) or Path(args.output).is_dir():
            print(_to_directory(args, log))
            return
        if given := [flag for name, flag in _FOR_DIRECTORIES.items() if getattr(args, name) not in (None, False)]:
            raise ValueError(f"{', '.join(given)}: only with a directory; end the output's name with /: {args.output}/")
        print(_to_file(args, log))


def _to_file(args: argparse.Namespace, log: IO[str] | None) -> str:
    from jaxpool.corpus.job import prepare

    job = prepare(args.input, Path(args.output), args.column)
    with _open_model(args) as llm:
        return job.run(_embedder(args, llm), progress=args.progress, log=log)


def _to_directory(args: argparse.Namespace, log: IO[str] | None) -> str:
    from jaxpool.corpus.report import say
    from jaxpool.corpus.shards import Settings, open_directory, prepare_shards
    from jaxpool.corpus.stopping import Preempted, Stop

    chosen = {name: getattr(args, name) for name in ("format", "shard_rows", "on_error")}
    settings = Settings(
        column=args.column,
        prompt_name=args.prompt_name,
        prompt=args.prompt,
        deterministic=args.deterministic,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    files, directory = open_directory(args.input, Path(args.output), settings)
    stop = Stop(GRACE if args.grace is None else args.grace)
    try:
        with stop.listening(), directory.locked():
            job = prepare_shards(files, directory, settings, resume=args.resume)
            if job is None:
                say(log, "done", output=str(directory.path), rows_left=0)
                return f"nothing is left to do -> {directory.path}"
            with _open_model(args) as llm:
                return job.run(_embedder(args, llm), stop, progress=args.progress, log=log)
    except Preempted:
        say(log, "stopped", output=str(directory.path))
        return f"stopped before a text was embedded -> {directory.path}; --resume goes on"


def _open_model(args: argparse.Namespace) -> LLM:
    from jaxpool.llm import LLM

    return LLM(
        args.model,
        revision=args.revision,
        dtype=args.dtype,
        quantization=args.quantization,
        tensor_parallel_size=args.tensor_parallel_size,
        data_parallel_size=args.data_parallel_size,
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        deterministic=args.deterministic,
        compile_cache=args.compile_cache,
    )


def _embedder(args: argparse.Namespace, llm: LLM) -> Embedder:
    from jaxpool.corpus.embedding import Embedder

    return Embedder(llm, args.prompt_name, args.prompt)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jaxpool embed` behind MODEL."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="files, globs and directories of .txt (each line is a text), .jsonl (each line is an object; both also "
        ".gz, .zst) and .parquet; URLs (s3://, gs://) too",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUTPUT",
        required=True,
        help="a .npy file (float32 [n, D]) or .parquet (the input's columns and `embedding`), replaced when whole; or "
        "with / at the end a directory of such shards, with a manifest",
    )
    parser.add_argument(
        "--column", metavar="NAME", default="text", help="where the texts are in .jsonl and .parquet (default: text)"
    )
    parser.add_argument("--max-model-len", metavar="N", type=int, help="cut texts at so many tokens")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt-name", metavar="NAME", help="which of the model's prompts to put before each text")
    prompt.add_argument("--prompt", metavar="TEXT", help="what to put before each text, instead")
    parser.add_argument(
        "--max-num-batched-tokens",
        metavar="N",
        type=int,
        help="tokens of a batch, padding included",
    )
    parser.add_argument(
        "--tensor-parallel-size", metavar="N", type=int, default=1, help="devices that share each layer"
    )
    parser.add_argument("--data-parallel-size", metavar="N", type=int, help="groups of them that share each batch")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="a text has the same vector, to the bit, whatever the other texts",
    )
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        nargs="?",
        const=True,
        default=False,
        help="keep compiled programs for the next run, in DIR or in ~/.cache/jaxpool",
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="show no progress bar")
    parser.add_argument(
        "--log-json", metavar="FILE", nargs="?", const="-", help="write progress as JSON lines to FILE, or to stderr"
    )
    _add_directory_arguments(parser.add_argument_group("a directory of shards (docs/jobs.md)"))


def _add_directory_arguments(group: argparse._ArgumentGroup) -> None:
    # No defaults here: so it can be told whether they were given for a single file, which knows none of them.
    group.add_argument("--resume", action="store_true", help="go on with what is there; begin if nothing is")
    group.add_argument("--format", choices=("parquet", "npy"), help="of the shards (default: parquet)")
    group.add_argument("--shard-rows", metavar="N", type=int, help="rows of the input a shard (default: 16384)")
    group.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="at rows that hold no text: stop before anything is computed (the default), or list them in the manifest",
    )
    group.add_argument(
        "--grace",
        metavar="SECONDS",
        type=float,
        help=f"from SIGTERM to the end; a shard that takes longer is dropped (default: {GRACE:g})",
    )
