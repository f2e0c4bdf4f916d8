"""The page at `/`, one file without a build step, and the JSON that it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.requests import Request

from jaxpool.server.encoding import json_response
from jaxpool.server.errors import ApiError
from jaxpool.server.registry import Models
from jaxpool.server.routes.pairs import check_scores
from jaxpool.server.serving import Serving
from jaxpool.tasks import PER_TOKEN

router = APIRouter()

HTML = (Path(__file__).parent.parent / "page.html").read_text(encoding="utf-8")


def _policy(html: str) -> str:
    """A Content-Security-Policy under which the page's own script and style run, by their hashes, and nothing else."""

    def sources(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_HEADERS = {
    "Content-Security-Policy": _policy(HTML),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> HTMLResponse:
    """For people. It holds nothing of the models, and so needs no key; what it shows it asks for with one."""
    return HTMLResponse(HTML, headers=_HEADERS)


@router.get("/recipe")
async def recipe(request: Request) -> Response:
    """The models' recipes and counters."""
    models: Models = request.app.state.models
    return json_response({"version": version("jaxpool"), "models": [_told(serving) for serving in models]})


def _told(serving: Serving) -> dict[str, Any]:
    recipe, stats = serving.recipe, serving.llm.stats
    return {
        "name": serving.name,
        "names": serving.names,
        "ready": serving.ready,
        "trouble": serving.trouble(),
        "recipe": recipe.describe(),
        "tasks": recipe.tasks,
        "embeds": recipe.embeds and recipe.task not in PER_TOKEN,
        "scores": _scores(serving),
        "dtype": str(serving.llm.dtype),
        "layout": serving.llm.layout,
        "stats": {
            "load": serving.load,
            "texts": stats.texts,
            "tokens": stats.tokens,
            "batches": stats.batches,
            "padding_share": stats.padding_share,
            "truncated": stats.truncated,
            "compilations": stats.compilations,
        },
    }


def _scores(serving: Serving) -> bool:
    try:
        check_scores(serving, "")
    except ApiError:
        return False
    return True
