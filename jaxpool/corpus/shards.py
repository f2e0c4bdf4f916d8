"""From files of texts to a directory of shards: a job that can be killed at any moment, and goes on from there.

Shard k stands for the input's rows k·N … (k+1)·N − 1, whatever becomes of them, and is embedded by a stream of its own:
so its batches, and with them its bits, do not depend on which shards the process did before.
"""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from jaxpool.corpus import arrow
from jaxpool.corpus.chunk import Feed
from jaxpool.corpus.directory import Directory
from jaxpool.corpus.embedding import Embedder, Stretch
from jaxpool.corpus.files import Files, FilesSurvey, open_files
from jaxpool.corpus.fingerprint import differences, fingerprint, refuse
from jaxpool.corpus.job import Inputs, check_apart, check_columns
from jaxpool.corpus.report import Report
from jaxpool.corpus.stopping import Preempted, Stop
from jaxpool.corpus.writing import WRITERS

Json = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the user chose that decides the output, beside the model's own arguments.

    Attributes:
        column: of the input, where the texts are.
        format: "parquet" or "npy".
        shard_rows: rows of the input that a shard stands for.
        on_error: "stop" or "skip", at a row that cannot be read.
        prompt_name, prompt: as `LLM.embed_stream` takes them.
        deterministic: as `LLM` takes it.
    """

    column: str = "text"
    format: str = "parquet"
    shard_rows: int = 16_384
    on_error: str = "stop"
    prompt_name: str | None = None
    prompt: str | None = None
    deterministic: bool = False

    def check(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.shard_rows < 1:
            raise ValueError(f"--shard-rows is {self.shard_rows}, expected at least 1")
        if f".{self.format}" not in WRITERS:
            raise ValueError(f"--format is {self.format!r}, expected one of {', '.join(WRITERS)}")


@dataclass(frozen=True)
class ShardedJob:
    """A job whose input and directory have been looked at. Made by `prepare_shards`.

    Attributes:
        files, survey: the input.
        directory: the output, locked.
        header: what of the manifest is known without the model.
        stored: the manifest that is there already; None: there is none.
        shard_rows: rows of a shard.
    """

    files: Files
    survey: FilesSurvey
    directory: Directory
    header: Json
    stored: Json | None
    shard_rows: int

    @property
    def shards(self) -> int:
        """How many there are when all is done: at least one, which may be empty."""
        return max(1, -(-self.survey.rows // self.shard_rows))

    def run(self, embedder: Embedder, stop: Stop, *, progress: bool = False, log: IO[str] | None = None) -> str:
        """Embeds what is missing.

        Args:
            embedder: the model.
            stop: tells when SIGTERM came; what is nearly done is finished then.
            progress: whether to show a bar on a terminal.
            log: where to write JSON lines; None: nowhere.

        Returns:
            A line for people: what was done, and what remains.

        Raises:
            ValueError: the model is not the one that the directory was begun with; and as `LLM.embed_stream`.
            OSError: the disk is full, or fails.
        """
        header = self._settle(embedder)
        missing = [number for number in range(self.shards) if not self.directory.has(number)]
        done = self.survey.rows - sum(map(self._rows, missing))
        with closing(Report(embedder.llm.stats, self.survey.rows, done=done, bar=progress, log=log)) as report:
            report.say("start", output=str(self.directory.path), shards=self.shards, shards_left=len(missing))
            try:
                for number, feed in self._feeds(missing, embedder):
                    with stop.working():
                        self._embed(number, feed, embedder, report, stop)
                    if stop.asked:
                        break
            except Preempted:
                pass  # the shard in work is dropped
            except OSError as error:
                raise _explained(error, self.directory.path) from error
            with stop.working():
                totals = self.directory.finish(header, self.shards)
            left = self.survey.rows - totals["rows"]
            report.say("stopped" if left else "done", output=str(self.directory.path), rows_left=left, **totals)
        skipped = f", {totals['skipped_rows']:,} rows skipped in all" if totals["skipped_rows"] else ""
        remain = f"; stopped, {left:,} of {self.survey.rows:,} rows remain: --resume goes on" if left else ""
        return f"{report.line()}{skipped} -> {self.directory.path}{remain}"

    def _settle(self, embedder: Embedder) -> Json:
        """The manifest's header: the one that is there, if the model is the same, or a new one, which is written."""
        own = fingerprint(embedder.llm)
        if self.stored is not None:
            refuse(self.directory.path, differences(self.stored["fingerprint"], own))
            return {name: self.stored[name] for name in self.stored if name not in _NOT_HEADER}
        llm = embedder.llm
        model = {"name": llm.model, "directory": str(llm.recipe.directory)}
        header = self.header | {"width": llm.recipe.embedding_size, "model": model, "fingerprint": own}
        self.directory.begin(header)
        return header

    def _rows(self, number: int) -> int:
        return min(self.shard_rows, self.survey.rows - number * self.shard_rows)

    def _feeds(self, numbers: list[int], embedder: Embedder) -> Iterator[tuple[int, Feed]]:
        """Each of these shards, with the rows from its first on; the input is read in one go where it can be."""
        following, feed = -1, Feed(())
        for number in numbers:
            if number != following:
                start = number * self.shard_rows
                feed = Feed(self.files.chunks(self.survey, start, empty=embedder.takes_empty))
            yield number, feed
            following = number + 1

    def _embed(self, number: int, feed: Feed, embedder: Embedder, report: Report, stop: Stop) -> None:
        rows, tokens, truncated = self._rows(number), report.tokens, report.truncated
        stretch = Stretch(embedder, feed.take(rows), rows, report, stop)
        vectors = 0
        width, pairs = embedder.llm.recipe.embedding_size, stretch.pairs()
        with (
            self.directory.writing(number) as part,
            WRITERS[self.directory.suffix](part, width, self.survey.schema) as write,
            closing(pairs),
        ):
            for chunk, found in pairs:
                write(chunk, found)
                vectors += len(found)
        file = self.directory.shard(number)
        with file.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        record = {
            "first_row": number * self.shard_rows,
            "rows": rows,
            "vectors": vectors,
            "tokens": report.tokens - tokens,
            "truncated": report.truncated - truncated,
            "bytes": file.stat().st_size,
            "sha256": digest,
            "skipped_rows": len(stretch.bad),
            "skipped": [bad.as_json() for bad in stretch.bad],
        }
        self.directory.put(number, record)
        report.say("shard", shard=number, file=str(file), vectors=vectors, skipped_rows=len(stretch.bad))


# Of a manifest, what belongs to a state of the job and not to the job.
_NOT_HEADER = ("jaxpool_manifest", "state", "shards", "totals")


def open_directory(inputs: Inputs, output: Path, settings: Settings) -> tuple[Files, Directory]:
    """Looks at what can be looked at without reading or writing.

    Args:
        inputs: files, globs, directories, URLs (see `sources.expand`).
        output: the directory, which need not be there.
        settings: what the user chose.

    Raises:
        ValueError, OSError, ImportError: as `open_files`; settings or an output that make no sense.
    """
    settings.check()
    files = open_files(inputs, settings.column, skip=settings.on_error == "skip")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output {output}: there is no directory {output.parent}")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output {output}: is a file, not a directory")
    check_apart(inputs, files, output)
    if settings.format == "parquet":
        arrow.import_pyarrow()
    return files, Directory(output, f".{settings.format}")


def prepare_shards(
    files: Files, directory: Directory, settings: Settings, *, resume: bool = False
) -> ShardedJob | None:
    """Reads the manifest, if there is one, and the input, if need be, before a model is loaded.

    Args:
        files, directory: from `open_directory`; the directory locked.
        settings: what the user chose.
        resume: go on with what is there.

    Returns:
        The job; None if nothing is left to do.

    Raises:
        ValueError: there is a job already and `resume` is false, or it was begun otherwise; and as `Files.survey`.
    """
    stored = directory.read()
    if stored is None:
        survey = files.survey(columns=settings.format == "parquet")
        check_columns(files, survey)
        header = {
            "arguments": asdict(settings),
            "rows": survey.rows,
            "inputs": [
                {**_looked_at(files, i), "sha256": corpus.source.digest(), "rows": survey.each[i]}
                for i, corpus in enumerate(files.corpora)
            ],
            "schema": _encode(survey.schema),
        }
        return ShardedJob(files, survey, directory, header, None, settings.shard_rows)
    if not resume:
        raise ValueError(
            f"output {directory.path}: there is a job already, {stored['state']}, of {stored['rows']:,} rows; --resume "
            "goes on with it, or give another directory"
        )
    refuse(directory.path, differences(stored["arguments"], asdict(settings), "arguments"))
    refuse(directory.path, _changed_inputs(stored["inputs"], files))
    if not directory.reopen(stored):
        return None
    survey = FilesSurvey(tuple(one["rows"] for one in stored["inputs"]), _decode(stored["schema"]))
    return ShardedJob(files, survey, directory, {}, stored, settings.shard_rows)


def _looked_at(files: Files, number: int) -> Json:
    source = files.corpora[number].source
    return {"name": source.name, "bytes": source.size(), "version": source.version()}


def _changed_inputs(stored: list[Json], files: Files) -> list[str]:
    """What is not as it was; a file that was written again is read, since it may hold what it held."""
    names = [one["name"] for one in stored]
    if lines := differences(dict(enumerate(names)), dict(enumerate(files.names)), "inputs"):
        return lines
    for number, one in enumerate(stored):
        now = _looked_at(files, number)
        telling = "bytes"
        if now["bytes"] == one["bytes"] and now["version"] != one["version"]:
            telling, now = "sha256", {"sha256": files.corpora[number].source.digest()}
        lines += differences(one[telling], now[telling], f"inputs.{one['name']}.{telling}")
    return lines


def _encode(schema: Any) -> str | None:
    return None if schema is None else base64.b64encode(schema.serialize()).decode("ascii")


def _decode(schema: str | None) -> Any:
    if schema is None:
        return None
    pa = arrow.import_pyarrow()
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))


def _explained(error: OSError, output: Path) -> OSError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return OSError(
        f"output {output}: the disk is full ({error.strerror or error}); the shards that are whole are kept: "
        "make room, then --resume goes on"
    )
