"""Vectors on the wire: lists of floats, base64, or bytes, in several dtypes and both byte orders."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import orjson
from fastapi.responses import Response

from jaxpool.server.protocol import VectorBody

DTYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}

# That are written as JSON at a time: about a millisecond's work.
NUMBERS_A_TURN = 65_536


def json_response(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """JSON, with numpy arrays as lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers=dict(headers or {}))


async def json_of_items(
    around: Mapping[str, Any], name: str, items: Sequence[Any], numbers: int, headers: Mapping[str, str]
) -> Response:
    """`{**around, name: items}` as JSON. Of many items some at a time, so that others get their turn in between.

    Args:
        numbers: in all items together, about.
    """
    turn = max(1, NUMBERS_A_TURN * len(items) // max(numbers, 1))
    parts = []
    for start in range(0, len(items), turn):
        if start:
            await asyncio.sleep(0)
        parts.append(orjson.dumps(items[start : start + turn], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
    body = b'%b,"%b":[%b]}' % (orjson.dumps(around)[:-1], name.encode(), b",".join(parts))
    return Response(body, media_type="application/json", headers=dict(headers))


def written(vector: np.ndarray, body: VectorBody) -> Any:
    """A vector as it stands in JSON: an array (which becomes a list), or base64 of its bytes."""
    if body.encoding_format == "float":
        return np.ascontiguousarray(vector)
    return base64.b64encode(to_bytes(vector, body.embed_dtype, body.endianness)).decode()


def to_bytes(vector: np.ndarray, dtype: str, endianness: str) -> bytes:
    """A vector's bytes, row by row."""
    array = np.ascontiguousarray(vector).astype(DTYPES[dtype])
    wanted = sys.byteorder if endianness == "native" else endianness
    if wanted != sys.byteorder and array.itemsize > 1:
        array = array.view(f"u{array.itemsize}").byteswap()
    return array.tobytes()


def bytes_response(
    vectors: Sequence[np.ndarray], body: VectorBody, around: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    """All vectors one behind the other, and what JSON would have said beside them in the header `metadata`."""
    parts = [to_bytes(vector, body.embed_dtype, body.endianness) for vector in vectors]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64).tolist()
    data = [
        {
            "index": i,
            "embed_dtype": body.embed_dtype,
            "endianness": body.endianness,
            "start": end - len(part),
            "end": end,
            "shape": list(vector.shape),
        }
        for i, (part, end, vector) in enumerate(zip(parts, ends, vectors, strict=True))
    ]
    told = {} if body.encoding_format == "bytes_only" else {"metadata": json.dumps({**around, "data": data})}
    return Response(b"".join(parts), media_type="application/octet-stream", headers={**headers, **told})
