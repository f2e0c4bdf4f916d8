"""Every process's answers, in every process."""

from __future__ import annotations

import jax
import numpy as np

# Rows that are sent at a time: the same number from every process, so that one program does for any call.
ROWS = 4096


def gather(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, one process's behind the other's, in each of them.

    All processes call it, in the same order among their calls. The rows go through the devices, `ROWS` at a time.

    Args:
        rows: [n, …] of this process; n may differ between processes, and be 0; what is behind it may not.

    Returns:
        [sum of all n, …] in the dtype of `rows`. Without other processes: `rows` itself.

    Raises:
        ValueError: the rows of two processes have different shapes or dtypes.
    """
    rows = np.asarray(rows)
    if jax.process_count() == 1:
        return rows
    from jax.experimental.multihost_utils import process_allgather

    kind = np.frombuffer(f"{rows.dtype.str} {rows.shape[1:]}".encode().ljust(64)[:64], np.uint8)
    kinds = process_allgather(kind)
    if (kinds != kinds[0]).any():
        raise ValueError(f"gather: processes hand in {sorted({bytes(k).decode().strip() for k in kinds})}")
    counts = process_allgather(np.array(len(rows), np.int32))
    gathered = np.empty((len(counts), max(counts), *rows.shape[1:]), rows.dtype)
    for start in range(0, max(counts), ROWS):
        part = rows[start : start + ROWS]
        block = np.zeros((ROWS, *rows.shape[1:]), rows.dtype)
        block[: len(part)] = part
        # As bytes: JAX would make float64 float32, and int64 int32.
        received = process_allgather(block.reshape(ROWS, -1).view(np.uint8)).view(rows.dtype)
        stop = min(start + ROWS, max(counts))
        gathered[:, start:stop] = received.reshape(len(counts), *block.shape)[:, : stop - start]
    return np.concatenate([own[:count] for own, count in zip(gathered, counts, strict=True)])
