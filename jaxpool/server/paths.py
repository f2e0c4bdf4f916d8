"""The path of a request within the application, by which everything in front of it decides."""

from __future__ import annotations

from starlette.types import Scope


def within(scope: Scope) -> str:
    """A request's path without the root path, which some proxies keep in front and others take away.

    It is what Starlette's router goes by: a path that only begins alike ("/apis" of "/api") is left whole.
    """
    path, root = scope["path"], scope.get("root_path", "")
    inner = path.removeprefix(root)
    return (inner or "/") if root and path.startswith(root) and inner[:1] in ("", "/") else path
