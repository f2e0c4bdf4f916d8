"""A directory of shards on disk: what is in it, and in which order it is written, so that a kill costs one shard.

    manifest.json           what the job is; once all is done, every shard and every skipped row too
    shards/000000.parquet   the vectors (or .npy)
    records/000000.json     what belongs to a shard in the manifest; gone once the manifest has it

Every file is written under another name, flushed to the disk, then renamed. A shard counts from the moment its record
has its name; the record comes after the shard. All that follows from the job and its input: no times, no host names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpool.log import logger
from jaxpool.whole import whole_file

VERSION = 1
# What a record counts, and the manifest sums up.
COUNTED = ("rows", "vectors", "skipped_rows", "tokens", "truncated")

# As `whole` names what is not whole yet.
_PART = re.compile(r"\.(manifest|\d{6,})\.(json|npy|parquet)\.part\d+")

Record = dict[str, Any]


@dataclass(frozen=True)
class Directory:
    """A directory of shards, which need not be there yet.

    Attributes:
        path: the directory.
        suffix: of the shards.
    """

    path: Path
    suffix: str

    @property
    def manifest(self) -> Path:
        """The manifest's path."""
        return self.path / "manifest.json"

    def shard(self, number: int) -> Path:
        """A shard's path."""
        return self.path / "shards" / f"{number:06}{self.suffix}"

    def _record(self, number: int) -> Path:
        return self.path / "records" / f"{number:06}.json"

    def read(self) -> dict[str, Any] | None:
        """The manifest; None if there is none.

        Raises:
            ValueError: it is none of jaxpool's, or a newer one; or there are other files and no manifest.
        """
        if not self.path.exists():
            return None
        if not self.manifest.exists():
            if strangers := sorted(p.name for p in self.path.iterdir() if not _is_part(p)):
                raise ValueError(
                    f"output {self.path}: there is no manifest.json in it, but {strangers[0]}; give an empty directory"
                )
            return None
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            version = manifest["jaxpool_manifest"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.manifest} is no manifest of jaxpool's: {error!r}") from error
        if version != VERSION:
            raise ValueError(f"{self.manifest} is of version {version}, this jaxpool reads {VERSION}")
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory and keeps other runs out of it; what a killed one left unfinished is removed.

        Raises:
            ValueError: another run is at work there.
        """
        new = not self.path.exists()
        self.path.mkdir(exist_ok=True)
        with _lock(self.path):
            for folder in (self.path, self.path / "shards", self.path / "records"):
                for path in filter(_is_part, folder.iterdir() if folder.is_dir() else ()):
                    path.unlink()
            try:
                yield
            finally:
                if new:
                    with suppress(OSError):  # unless something was written
                        self.path.rmdir()

    def begin(self, header: Mapping[str, Any]) -> None:
        """Writes the manifest of a job that has no shard yet."""
        self._write_manifest(header, "incomplete")
        self._make_folders()

    def _make_folders(self) -> None:
        for folder in ("shards", "records"):
            (self.path / folder).mkdir(exist_ok=True)

    def reopen(self, manifest: Mapping[str, Any]) -> bool:
        """Takes up a directory again, and says whether there is anything left to do.

        Where a complete one has lost a shard, its manifest is taken apart into records again.
        """
        if manifest["state"] == "complete":
            if all(map(self._is_whole, manifest["shards"])):
                shutil.rmtree(self.path / "records", ignore_errors=True)
                return False
            self._make_folders()
            for record in manifest["shards"]:
                self._write_record(record)
        self._make_folders()
        return True

    def has(self, number: int) -> bool:
        """Whether a shard is whole: its record is there, and the file has as many bytes as that says."""
        with suppress(FileNotFoundError, ValueError):
            return self._is_whole(json.loads(self._record(number).read_text(encoding="utf-8")))
        return False

    def _is_whole(self, record: Record) -> bool:
        file = self.shard(record["shard"])
        return file.is_file() and file.stat().st_size == record["bytes"]

    @contextmanager
    def writing(self, number: int) -> Iterator[Path]:
        """The name to write a shard under."""
        with durable_file(self.shard(number)) as part:
            yield part

    def put(self, number: int, record: Record) -> None:
        """Counts a shard that was written."""
        self._write_record({"shard": number, "file": f"shards/{self.shard(number).name}", **record})

    def _write_record(self, record: Record) -> None:
        with durable_file(self._record(record["shard"])) as part:
            part.write_text(_line(record), encoding="utf-8")

    def finish(self, header: Mapping[str, Any], shards: int) -> dict[str, int]:
        """Writes the manifest with the shards that are whole; if all are, the records go.

        Returns:
            The totals, by the names in `COUNTED`.
        """
        complete = all(map(self.has, range(shards)))
        totals = self._write_manifest(header, "complete" if complete else "incomplete", shards)
        if complete:
            shutil.rmtree(self.path / "records")
        return totals

    def _write_manifest(self, header: Mapping[str, Any], state: str, shards: int = 0) -> dict[str, int]:
        """A line for each shard, written as they are read: there may be many, with many skipped rows."""
        totals = dict.fromkeys(COUNTED, 0)
        with durable_file(self.manifest) as part, part.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"jaxpool_manifest": VERSION, "state": state, **header}, indent=1)[:-2])
            file.write(',\n "shards": [')
            comma = ""
            for number in filter(self.has, range(shards)):
                record = json.loads(self._record(number).read_text(encoding="utf-8"))
                file.write(f"{comma}\n  {_line(record)}")
                comma = ","
                for name in COUNTED:
                    totals[name] += record[name]
            file.write(f'\n ],\n "totals": {_line(totals)}\n}}\n')
        return totals


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


@contextmanager
def durable_file(path: Path) -> Iterator[Path]:
    """`whole_file` that also outlives the machine: the content is on the disk before the name is."""
    with whole_file(path) as part:
        yield part
        _flush(part)
    _flush(path.parent)


def _flush(path: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_part(path: Path) -> bool:
    return _PART.fullmatch(path.name) is not None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """The kernel lets go of it however the process ends."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"output {path}: another run is writing there; wait for it, or end it") from error
        except OSError as error:  # some network file systems lock no directories
            logger.warning("output %s cannot be locked (%s): see to it that no other run writes there", path, error)
        yield
    finally:
        os.close(descriptor)
