"""A batch's rows over a mesh: those that this process fills before the upload, and reads back."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpool.sharding import DATA, rows_sharding

Groups = tuple[tuple[int, ...], ...]


def row_groups(mesh: Mesh) -> Groups:
    """The processes of a mesh in groups that hold the same rows of a batch, in the order of their rows.

    Raises:
        ValueError: rows that some, but not all, of a group's processes hold, or groups of unequal numbers of rows.
    """
    by_row = np.moveaxis(mesh.devices, mesh.axis_names.index(DATA), 0).reshape(mesh.shape[DATA], -1)
    held: dict[int, set[int]] = defaultdict(set)
    for row, devices in enumerate(by_row):
        for device in devices:
            held[device.process_index].add(row)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for process, rows in sorted(held.items()):
        groups[tuple(sorted(rows))].append(process)
    if sum(map(len, groups)) != mesh.shape[DATA] or len({len(rows) for rows in groups}) > 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)}: its data axis cuts through the processes' devices unevenly: {sorted(groups)}"
        )
    return tuple(tuple(processes) for _, processes in sorted(groups.items()))


class Rows:
    """The rows of a replica's batches. "Own" rows are those of this process's group.

    Args:
        mesh: the replica's.

    Attributes:
        sharding: of every array of a batch.
        groups: of processes that share rows; () where the mesh is this process's alone.
        multiple: numbers of own rows are a multiple of this.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.sharding = rows_sharding(mesh)
        self.groups: Groups = row_groups(mesh) if mesh.is_multi_process else ()
        self.multiple = mesh.shape[DATA] // max(1, len(self.groups))

    def of_all(self, rows: int) -> int:
        """A batch's rows over all groups, from those of one."""
        return rows * max(1, len(self.groups))

    def of_own(self, rows: int) -> int:
        """The other way round."""
        return rows // max(1, len(self.groups))

    def upload(self, inputs: Any) -> Any:
        """Own rows as numpy arrays -> what a program takes: arrays of all rows on the devices, or the same arrays where
        they are all. JAX uploads those with the call; `jax.device_put` before it is a fifth of a short text's time.
        """
        return jax.tree.map(self._global, inputs) if self.groups else inputs

    def download(self, output: jax.Array) -> np.ndarray:
        """Waits for an array of all rows; own ones come back."""
        if not self.groups:
            return np.asarray(output)
        pieces = {_start(shard.index): shard.data for shard in output.addressable_shards}
        return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])

    def _global(self, own: np.ndarray) -> jax.Array:
        shape = (self.of_all(len(own)), *own.shape[1:])
        starts = sorted({_start(index) for index in self.sharding.addressable_devices_indices_map(shape).values()})
        size = len(own) // len(starts)

        def part(index: Any) -> np.ndarray:
            first = starts.index(_start(index)) * size
            return own[first : first + size]

        return jax.make_array_from_callback(shape, self.sharding, part)


def _start(index: tuple[slice, ...] | None) -> int:
    return index[0].start or 0 if index else 0
