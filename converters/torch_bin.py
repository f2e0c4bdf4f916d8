"""Reading PyTorch's pickled checkpoints without torch, and without running what is pickled.

A restricted unpickler knows tensors, parameters and ordered dicts, and refuses every other name by naming it.
Formats: the zip archive of torch ≥ 1.6 (tensors stay on disk until read) and the older stream of pickles.
Follows torch/serialization.py (`_load`, `_legacy_load`).
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpool.converters.rules import CheckpointError, Index

_STORAGE_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Tensor:
    """A tensor not read yet: a strided view of a storage."""

    def __init__(
        self, storage: Callable[[], np.ndarray], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ):
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), strides

    def array(self) -> np.ndarray:
        flat = self.storage()[self.offset :]
        size = flat.dtype.itemsize
        return np.lib.stride_tricks.as_strided(flat, self.shape, [s * size for s in self.strides], writeable=False)


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _StorageType:
    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(_STORAGE_DTYPES[name])


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.nn.parameter", "Parameter"): lambda data, *_: data,
} | {("torch", name): _StorageType(name) for name in _STORAGE_DTYPES}


class _Unpickler(pickle.Unpickler):
    """Builds `_Tensor`s; `load_storage(type, key, numel)` says where a storage's values come from."""

    def __init__(self, file: io.BufferedIOBase, load_storage: Callable[[np.dtype, str, int], Any], path: Path):
        super().__init__(file)
        self._load_storage, self._path = load_storage, path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self._path} pickles {module}.{name}, and only tensors are read from .bin files. If you trust the "
                "file, save it again as safetensors"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        kind, storage_type, key, _location, numel, *_view = pid
        if kind != "storage":
            raise CheckpointError(f"{self._path} refers to an unknown object {kind!r}")
        return self._load_storage(storage_type.dtype, str(key), int(numel))


class TorchFile:
    """One .bin file, seen as a flat dict of tensors."""

    def __init__(self, path: Path) -> None:
        try:
            loaded = _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)
        except (
            pickle.UnpicklingError,
            EOFError,
            struct.error,
            zipfile.BadZipFile,
            KeyError,
            AttributeError,
        ) as error:
            raise CheckpointError(f"{path} is not a whole PyTorch checkpoint ({error}); it may be truncated") from error
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
        loaded = loaded.get("state_dict", loaded)
        self._tensors = {key: value for key, value in loaded.items() if isinstance(value, _Tensor)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {key: tensor.shape for key, tensor in self._tensors.items()}

    def read(self, key: str, index: Index | None) -> np.ndarray:
        """A tensor, or its part under `index`."""
        array = self._tensors[key].array()
        return np.ascontiguousarray(array[index] if index else array)


def _load_zip(path: Path) -> Any:
    archive = zipfile.ZipFile(path)
    pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    root = pickled.removesuffix("data.pkl")

    def load_storage(dtype: np.dtype, key: str, numel: int) -> Callable[[], np.ndarray]:
        info = archive.getinfo(f"{root}data/{key}")
        with path.open("rb") as file:
            # Where the member's bytes start: behind its local header, whose name and extra field vary in length.
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        start = info.header_offset + 30 + name + extra
        return lambda: np.memmap(path, dtype, "r", offset=start, shape=(numel,))

    return _Unpickler(io.BytesIO(archive.read(pickled)), load_storage, path).load()


def _load_legacy(path: Path) -> Any:
    arrays: dict[str, np.ndarray] = {}
    wanted: dict[str, np.dtype] = {}

    def load_storage(dtype: np.dtype, key: str, numel: int) -> Callable[[], np.ndarray]:
        wanted[key] = dtype
        return lambda: arrays[key]

    with path.open("rb") as file:
        unpickler = lambda: _Unpickler(file, load_storage, path).load()  # noqa: E731
        if unpickler() != _LEGACY_MAGIC:
            raise CheckpointError(f"{path} is neither a zip archive nor an old PyTorch checkpoint")
        unpickler()  # protocol version
        unpickler()  # byte order and integer sizes of the machine that saved
        loaded = unpickler()
        for key in unpickler():
            (numel,) = struct.unpack("<q", file.read(8))
            dtype = wanted[str(key)]
            values = file.read(numel * dtype.itemsize)
            if len(values) < numel * dtype.itemsize:
                raise EOFError(f"storage {key} ends early")
            arrays[str(key)] = np.frombuffer(values, dtype)
    return loaded
