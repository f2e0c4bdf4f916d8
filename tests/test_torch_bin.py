"""PyTorch's .bin files, made here without torch: whole ones are read, damaged and hostile ones are refused."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from jaxpool.converters.torch_bin import TorchFile
from jaxpool.converters.transforms import CheckpointError

VALUES = np.arange(6, dtype=np.float32)
BYTES = VALUES.tobytes()


class Storage:
    def __init__(self, numel=6, kind="FloatStorage"):
        self.numel, self.kind = numel, kind


class Tensor:
    def __init__(self, shape=(2, 3), strides=(3, 1), offset=0, storage=None):
        self.arguments = (storage or Storage(), offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Command:
    def __reduce__(self):
        return os.system, ("touch hacked",)


class Pickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy = legacy

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        kind = getattr(sys.modules["torch"], value.kind)
        return ("storage", kind, "0", "cpu", value.numel, *((None,) if self.legacy else ()))


@pytest.fixture(autouse=True)
def fake_torch(monkeypatch):
    """What pickle looks names up in when it writes them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    utils._rebuild_tensor_v2 = types.FunctionType((lambda *_: None).__code__, {}, "_rebuild_tensor_v2")
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def pickled(value, legacy=False):
    file = io.BytesIO()
    Pickler(file, legacy).dump(value)
    return file.getvalue()


def write_zip(path, value, data=BYTES, compression=zipfile.ZIP_STORED, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickled(value))
        archive.writestr("archive/data/0", data, compression)
    return path


def write_legacy(path, value, data=BYTES, numel=6):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [*(pickle.dumps(part, 2) for part in head), pickled(value, legacy=True), pickle.dumps(["0"], 2)]
    path.write_bytes(b"".join(parts) + struct.pack("<q", numel) + data)
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


def refused(path, *words):
    with pytest.raises(CheckpointError) as error:
        TorchFile(path)
    for word in (path.name, *words):
        assert word in str(error.value)


@WRITERS
def test_a_whole_file(tmp_path, write):
    tensors = {
        "a": Tensor(),
        "turned": Tensor((3, 2), (1, 3)),
        "last": Tensor((2,), (1,), 4),
        "scalar": Tensor((), (), 5),
        "empty": Tensor((0, 9), (9, 1), 6),
        "epoch": 3,
        "name": "x",
        "nothing": None,
    }
    file = TorchFile(write(tmp_path / "m.bin", OrderedDict(tensors)))
    expected = {
        "a": VALUES.reshape(2, 3),
        "turned": VALUES.reshape(2, 3).T,
        "last": VALUES[4:],
        "scalar": VALUES[5],
        "empty": np.empty((0, 9), np.float32),
    }
    assert file.shapes() == {key: array.shape for key, array in expected.items()}
    for key, array in expected.items():
        np.testing.assert_array_equal(file.read(key, None).reshape(array.shape), array)
    np.testing.assert_array_equal(file.read("a", (slice(1, 2), slice(None))), VALUES.reshape(2, 3)[1:])


@WRITERS
def test_code_is_refused_and_not_run(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(write(tmp_path / "m.bin", {"a": Command()}), "system")
    assert not (tmp_path / "hacked").exists()


@WRITERS
@pytest.mark.parametrize(
    "tensor",
    [
        Tensor((2, 3), (4, 1)),
        Tensor((2, 3), (3, 1), 1),
        Tensor((1,), (1,), 6),
        Tensor((1,), (1,), -1),
        Tensor((2,), (-1,), 1),
        Tensor((2**70,), (2**70,)),
        Tensor((2, 3), (3,)),
        Tensor((2.0, 3), (3, 1)),
    ],
)
def test_a_view_outside_its_storage_is_refused(tmp_path, write, tensor):
    refused(write(tmp_path / "m.bin", {"good": Tensor(), "bad": tensor}), "'bad'")


@pytest.mark.parametrize("numel", [7, -1, 2**62])
def test_a_storage_larger_than_its_bytes_is_refused(tmp_path, numel):
    refused(write_zip(tmp_path / "m.bin", {"a": Tensor(storage=Storage(numel))}))
    refused(write_legacy(tmp_path / "old.bin", {"a": Tensor()}, numel=numel))


def test_compressed_tensors_are_refused(tmp_path):
    refused(write_zip(tmp_path / "m.bin", {"a": Tensor()}, compression=zipfile.ZIP_DEFLATED), "compressed")


@WRITERS
def test_truncated_anywhere_is_refused(tmp_path, write):
    whole = write(tmp_path / "whole.bin", {"a": Tensor()}).read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "m.bin").write_bytes(whole[:size])
        refused(tmp_path / "m.bin")


def test_other_damage_is_refused(tmp_path):
    refused(write_zip(tmp_path / "m.bin", {}, name="elsewhere.pkl"))
    refused(write_zip(tmp_path / "m.bin", [1]), "list")
    refused(write_zip(tmp_path / "m.bin", {"state_dict": 3}), "state_dict")
    refused(write_zip(tmp_path / "m.bin", {"a": Tensor(), "optimizer": {"b": Tensor()}}), "'optimizer'")
