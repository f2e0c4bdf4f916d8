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

from jaxpool.converters.transforms import CheckpointError, Index

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
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def check(self) -> None:
        """Whether the view lies inside its storage; `array` relies on it. What is pickled may lie."""
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.strides):
            raise ValueError(f"offset {self.offset}, shape {self.shape} and strides {self.strides} make no tensor")
        elements = self.storage().size
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= elements:
            raise ValueError(f"it reaches element {last} of a storage of {elements}")

    def array(self) -> np.ndarray:
        flat = self.storage()
        if 0 in self.shape:
            return np.empty(self.shape, flat.dtype)
        flat, size = flat[self.offset :], flat.dtype.itemsize
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
        kind, storage_type, key, _location, numel, *view = pid
        if kind != "storage":
            raise CheckpointError(f"{self._path} refers to an unknown object {kind!r}")
        if any(part is not None for part in view):
            raise CheckpointError(f"{self._path} holds views of storages, which only very old PyTorch wrote")
        return self._load_storage(storage_type.dtype, str(key), int(numel))


class TorchFile:
    """One .bin file, seen as a flat dict of tensors."""

    def __init__(self, path: Path) -> None:
        try:
            loaded = _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)
        except (CheckpointError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise CheckpointError(
                f"{path} is not a whole PyTorch checkpoint ({type(error).__name__}: {error}); it may be truncated"
            ) from error
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
        loaded = loaded.get("state_dict", loaded)
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{path}: `state_dict` is a {type(loaded).__name__}, expected a dict of tensors")
        self._tensors: dict[str, _Tensor] = {}
        for key, value in loaded.items():
            if isinstance(value, _Tensor) and isinstance(key, str):
                try:
                    value.check()
                except Exception as error:  # as above
                    raise CheckpointError(f"{path}: tensor {key!r} is damaged: {error}") from error
                self._tensors[key] = value
            elif not isinstance(value, int | float | str | None):
                raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, expected a tensor")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {key: tensor.shape for key, tensor in self._tensors.items()}

    def read(self, key: str, index: Index | None) -> np.ndarray:
        """A tensor, or its part under `index`."""
        array = self._tensors[key].array()
        return np.ascontiguousarray(array[index] if index else array)


def _load_zip(path: Path) -> Any:
    size = path.stat().st_size

    def load_storage(dtype: np.dtype, key: str, numel: int) -> Callable[[], np.ndarray]:
        info = archive.getinfo(f"{root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path}: {info.filename} is compressed, and PyTorch stores tensors as they are")
        with path.open("rb") as file:
            # Where the member's bytes start: behind its local header, whose name and extra field vary in length.
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        start = info.header_offset + 30 + name + extra
        wanted = numel * dtype.itemsize
        if numel < 0 or wanted > info.file_size or start + wanted > size:
            raise EOFError(f"{info.filename} has {info.file_size} bytes, expected {wanted}")
        if numel == 0:  # which cannot be mapped
            return lambda: np.empty(0, dtype)
        return lambda: np.memmap(path, dtype, "r", offset=start, shape=(numel,))

    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
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
            if not 0 <= numel * dtype.itemsize <= path.stat().st_size - file.tell():
                raise EOFError(f"storage {key} ends early")
            arrays[str(key)] = np.frombuffer(file.read(numel * dtype.itemsize), dtype)
    return loaded
