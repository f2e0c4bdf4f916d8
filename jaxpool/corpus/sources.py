"""Which files an input means, and how they are opened: paths, globs, directories and URLs, compressed or not."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jaxpool.corpus import arrow

KINDS = (".txt", ".jsonl", ".parquet")
_BUFFER = 2**20


def _gunzip(file: IO[bytes]) -> Any:
    return gzip.GzipFile(fileobj=file)


def _unzstd(file: IO[bytes]) -> Any:
    # pyarrow's, since the package zstandard reads a truncated file to its last whole block and says nothing.
    pa = arrow.import_pyarrow(".zst files")
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


COMPRESSIONS: dict[str, Callable[[IO[bytes]], Any]] = {".gz": _gunzip, ".zst": _unzstd}


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes:
        name: its path or URL, as the user, errors and manifests call it.
    """

    name: str

    @property
    def kind(self) -> str:
        """The suffix that says what is in the file, without the compression's: one of `KINDS`, or another."""
        path = PurePosixPath(self.name)
        return (PurePosixPath(path.stem) if self.compression else path).suffix.lower()

    @property
    def compression(self) -> str:
        """The suffix of the compression, or ""."""
        suffix = PurePosixPath(self.name).suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    def check(self) -> None:
        """Refuses what cannot be read, before anything is read.

        Raises:
            ValueError: a suffix that is not understood.
            FileNotFoundError: no such file.
            ImportError: a library for the URL is not installed.
        """
        if self.kind not in KINDS:
            raise ValueError(f"input {self.name}: the suffix is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.compression and self.kind == ".parquet":
            raise ValueError(f"input {self.name}: .parquet is compressed inside; unpack the {self.compression} first")
        if not self._on_disk(os.path.isfile, lambda fs, path: fs.isfile(path)):
            raise FileNotFoundError(f"input {self.name}: there is no such file")

    def open(self) -> IO[bytes]:
        """The file's own bytes, from the start; it can seek where the file system can."""
        return self._on_disk(lambda path: Path(path).open("rb"), lambda fs, path: fs.open(path, "rb"))

    @contextmanager
    def unpacked(self) -> Iterator[IO[bytes]]:
        """The bytes behind the compression.

        Raises:
            ValueError: the compressed file is cut off or damaged.
        """
        with self.open() as raw:
            if not self.compression:
                yield raw
                return
            try:
                with io.BufferedReader(COMPRESSIONS[self.compression](raw), _BUFFER) as file:
                    yield file
            except (EOFError, zlib.error, OSError) as error:
                if getattr(error, "errno", None) is not None:  # the disk's or the network's, not the content's
                    raise
                raise ValueError(f"{self.name}: not a whole {self.compression} file: {error}") from error

    def size(self) -> int:
        """Bytes of the file."""
        return self._on_disk(os.path.getsize, lambda fs, path: fs.size(path))

    def version(self) -> str:
        """What changes when the file is written again: the time, or what the remote file system has for it."""
        return self._on_disk(lambda path: str(Path(path).stat().st_mtime_ns), lambda fs, path: str(fs.ukey(path)))

    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def _on_disk(self, local: Callable[[str], Any], remote: Callable[[Any, str], Any]) -> Any:
        return remote(*_filesystem(self.name)) if is_url(self.name) else local(self.name)


def is_url(name: str) -> bool:
    """Whether a name is for fsspec to open."""
    return "://" in name


def expand(inputs: Sequence[str | os.PathLike[str]]) -> tuple[Source, ...]:
    """The files that are meant: in the order given, those of one glob or directory in the order of their names.

    Args:
        inputs: files, globs (`**` too), directories (with all that is under them), each a path or a URL. Of a
            directory, files of other suffixes and names that start with "." or "_" are passed over.

    Raises:
        ValueError, FileNotFoundError, ImportError: nothing is meant, or a file twice; and as `Source.check`.
    """
    found: dict[str, Source] = {}
    for one in inputs:
        for source in map(Source, _files(os.fspath(one))):
            source.check()
            if source.name in found:
                raise ValueError(f"input {source.name}: given twice; its rows would be doubled")
            found[source.name] = source
    return tuple(found.values())


def _files(name: str) -> list[str]:
    files = _remote_files(name) if is_url(name) else _local_files(name)
    if not files:
        raise FileNotFoundError(f"input {name}: there is no {', '.join(KINDS)} (.gz, .zst) file")
    return files


def _local_files(name: str) -> list[str]:
    if Path(name).is_dir():
        return _readable(name, (str(path) for path in Path(name).rglob("*") if path.is_file()))
    if glob.has_magic(name) and not Path(name).exists():
        return sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())  # noqa: PTH207
    return [name]


def _remote_files(url: str) -> list[str]:
    filesystem, path = _filesystem(url)
    if glob.has_magic(path):
        found = [one for one in filesystem.glob(path) if filesystem.isfile(one) and not _is_hidden(one, path)]
    elif filesystem.isdir(path):
        found = _readable(path, filesystem.find(path))
    else:
        return [url]
    return sorted(map(filesystem.unstrip_protocol, found))


def _is_hidden(path: str, pattern: str) -> bool:
    # As in a shell, where "*" stands for no name that starts with ".".
    said = PurePosixPath(pattern).parts
    return any(part.startswith(".") and part not in said for part in PurePosixPath(path).parts)


def _readable(root: str, paths: Iterable[str]) -> list[str]:
    """Of a directory's files those that are meant."""
    below = len(PurePosixPath(root).parts)
    return sorted(
        path
        for path in paths
        if Source(path).kind in KINDS
        and not any(part.startswith((".", "_")) for part in PurePosixPath(path).parts[below:])
    )


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(f"input {url}: URLs need fsspec ({error}): pip install 'jaxpool[data]'") from error
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:  # no library for this protocol here, or no such protocol
        raise type(error)(f"input {url}: {error}") from error
