"""Sequences as bytes, for the processes that share rows with this one."""

from __future__ import annotations

import numpy as np

from jaxpool.batch import OPTIONS, Sequence


def pack(sequences: list[Sequence]) -> bytes:
    """Ids and options."""
    table = [[len(s.ids), *(int(getattr(s, option)) for option in OPTIONS)] for s in sequences]
    head = np.array([len(sequences), *(number for row in table for number in row)], np.int32)
    return b"".join([head.tobytes(), *(s.ids.astype(np.int32, copy=False).tobytes() for s in sequences)])


def unpack(packed: bytes) -> list[Sequence]:
    """What `pack` made; nobody here waits for the answers, so the sequences have no owners."""
    numbers = np.frombuffer(packed, np.int32)
    width = 1 + len(OPTIONS)
    table = numbers[1 : 1 + numbers[0] * width].reshape(-1, width)
    ids = np.split(numbers[1 + table.size :], np.cumsum(table[:, 0])[:-1]) if len(table) else []
    rows = zip(ids, table[:, 1:].tolist(), strict=True)
    return [Sequence(own, owners=(), **dict(zip(OPTIONS, options, strict=True))) for own, options in rows]
