"""The accelerators that a plan can be made for: memory of a device, and the slices that they are rented in.

Figures are those that the makers publish: GiB of HBM a device, as JAX counts devices (TPU7x shows its chip's halves).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Of a device's memory: what the runtime itself keeps is not for programs (a v5e's 16 GiB show as 15.75).
USABLE = 0.95


@dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
        platform: JAX's name, "tpu" or "gpu".
        memory: GiB of HBM a device.
        slices: the sizes that it comes in, smallest first ("2x4" chips, or "8" GPUs).
        devices: JAX devices a chip.
    """

    platform: str
    memory: float
    slices: tuple[str, ...]
    devices: int = 1


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
_HOST = ("1", "2", "4", "8")
CHIPS: Mapping[str, Chip] = {
    "v4": Chip("tpu", 32, _CUBES),
    "v5e": Chip("tpu", 16, _FLAT),
    "v5p": Chip("tpu", 95, _CUBES),
    "v6e": Chip("tpu", 32, _FLAT),
    "tpu7x": Chip("tpu", 96, _CUBES, devices=2),
    "l4": Chip("gpu", 24, _HOST),
    "a100-40": Chip("gpu", 40, _HOST),
    "a100-80": Chip("gpu", 80, _HOST),
    "h100": Chip("gpu", 80, _HOST),
    "h200": Chip("gpu", 141, _HOST),
}


@dataclass(frozen=True)
class Slice:
    """Some devices of one kind: "v5e:4x8", "h100:1".

    Attributes:
        kind: a name in `CHIPS`.
        shape: as it is written.
    """

    kind: str
    shape: str

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Reads "v5e:4x8".

        Raises:
            ValueError: an unknown kind, or no shape.
        """
        kind, _, shape = text.lower().partition(":")
        if kind not in CHIPS:
            raise ValueError(f"topology {text!r}: the kind is {kind!r}, expected one of {', '.join(CHIPS)}")
        sizes = shape.split("x")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ValueError(f"topology {text!r}: expected sizes behind the kind, as in {kind}:{CHIPS[kind].slices[2]}")
        return cls(kind, shape)

    @property
    def chip(self) -> Chip:
        """Its kind."""
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        """How many JAX devices there are."""
        return math.prod(map(int, self.shape.split("x"))) * self.chip.devices

    @property
    def memory(self) -> int:
        """Bytes of a device that programs can use."""
        return int(self.chip.memory * USABLE * 2**30)

    def __str__(self) -> str:
        return f"{self.kind}:{self.shape}"
