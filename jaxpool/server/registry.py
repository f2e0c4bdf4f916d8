"""The models of a server, by every name that they go by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxpool.server.errors import ApiError
from jaxpool.server.serving import Serving


class Models:
    """Served models.

    Args:
        servings: at least one; the first answers requests that name none.

    Raises:
        ValueError: two models of one name.
    """

    def __init__(self, servings: Sequence[Serving]) -> None:
        self._servings = tuple(servings)
        self._by_name: dict[str, Serving] = {}
        for serving in servings:
            for name in serving.names:
                if name in self._by_name:
                    raise ValueError(f"two models are called {name!r}: give them names of their own")
                self._by_name[name] = serving

    def __iter__(self) -> Iterator[Serving]:
        return iter(self._servings)

    def items(self) -> Iterator[tuple[str, Serving]]:
        """Every name, with its model."""
        yield from self._by_name.items()

    def find(self, name: str | None) -> Serving:
        """The model of a name.

        Raises:
            ApiError: 404, none has it.
        """
        if not name:
            return self._servings[0]
        if name not in self._by_name:
            raise ApiError(404, f"The model `{name}` does not exist.", param="model")
        return self._by_name[name]
