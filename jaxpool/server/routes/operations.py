"""What operators ask for: health, models, metrics, load."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.types import Scope

from jaxpool.server import metrics
from jaxpool.server.encoding import json_response
from jaxpool.server.errors import ApiError
from jaxpool.server.paths import within
from jaxpool.server.registry import Models
from jaxpool.server.serving import Serving

router = APIRouter()
_READING = frozenset({"GET", "HEAD"})
# Path -> methods answered without a key. The page holds nothing of the models: what it shows it asks for with one.
OPEN = {"/": _READING, "/health": _READING, "/ready": _READING, "/ping": _READING | {"POST"}}


def is_open(scope: Scope) -> bool:
    """Whether a request is for what is `OPEN`."""
    return scope["method"] in OPEN.get(within(scope), ())


@router.get("/health")
@router.get("/ping")
@router.post("/ping")
async def health(request: Request) -> Response:
    """200 while every model can answer, also before all of them are warm."""
    for serving in _models(request):
        if trouble := serving.trouble():
            raise ApiError(503, f"{serving.name}: {trouble}")
    return Response(status_code=200)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 once nothing compiles any more."""
    for serving in _models(request):
        if not serving.ready:
            raise ApiError(503, f"{serving.name}: {serving.cold or 'still warming up'}")
    return await health(request)


@router.get("/version")
async def version_(request: Request) -> dict[str, str]:
    """jaxpool's."""
    return {"version": version("jaxpool")}


@router.get("/load")
async def load(request: Request) -> dict[str, int]:
    """Requests in work, over all models: vLLM's."""
    return {"server_load": sum(serving.load for serving in _models(request))}


@router.get("/metrics")
async def metrics_(request: Request) -> Response:
    """Prometheus's."""
    for serving in _models(request):
        metrics.up.labels(serving.name).set(serving.trouble() is None)
    return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """OpenAI's."""
    data = [_model(name, serving) for name, serving in _models(request).items()]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """OpenAI's: one of them. Names may have slashes."""
    return json_response(_model(name, _models(request).find(name))) if name else await models(request)


def _model(name: str, serving: Serving) -> dict[str, Any]:
    """A model as vLLM tells of it; OpenAI's older clients read its `permission`."""
    return {
        "id": name,
        "object": "model",
        "created": serving.started,
        "owned_by": "jaxpool",
        "root": serving.name,
        "parent": None,
        "max_model_len": serving.recipe.max_length,
        "permission": [
            {
                "id": f"modelperm-{serving.name}",
                "object": "model_permission",
                "created": serving.started,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }


def _models(request: Request) -> Models:
    return request.app.state.models
