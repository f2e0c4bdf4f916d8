"""jaxpool: pooling models in JAX. The public names; each is imported when first used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpool.converters.export import load_params as load_params
    from jaxpool.hosts import HostError as HostError
    from jaxpool.hosts import gather as gather
    from jaxpool.llm import LLM as LLM
    from jaxpool.model import Model as Model
    from jaxpool.model import load as load
    from jaxpool.models import register as register
    from jaxpool.outputs import ClassificationOutput as ClassificationOutput
    from jaxpool.outputs import ClassificationRequestOutput as ClassificationRequestOutput
    from jaxpool.outputs import EmbeddingOutput as EmbeddingOutput
    from jaxpool.outputs import EmbeddingRequestOutput as EmbeddingRequestOutput
    from jaxpool.outputs import PoolingOutput as PoolingOutput
    from jaxpool.outputs import PoolingRequestOutput as PoolingRequestOutput
    from jaxpool.outputs import ScoringOutput as ScoringOutput
    from jaxpool.outputs import ScoringRequestOutput as ScoringRequestOutput
    from jaxpool.pooler_config import PoolerConfig as PoolerConfig
    from jaxpool.pooling_params import PoolingParams as PoolingParams
    from jaxpool.recipe import read_recipe as read_recipe

_HOMES = {
    "LLM": "jaxpool.llm",
    "PoolerConfig": "jaxpool.pooler_config",
    "PoolingParams": "jaxpool.pooling_params",
    "ClassificationOutput": "jaxpool.outputs",
    "ClassificationRequestOutput": "jaxpool.outputs",
    "EmbeddingOutput": "jaxpool.outputs",
    "EmbeddingRequestOutput": "jaxpool.outputs",
    "PoolingOutput": "jaxpool.outputs",
    "PoolingRequestOutput": "jaxpool.outputs",
    "ScoringOutput": "jaxpool.outputs",
    "ScoringRequestOutput": "jaxpool.outputs",
    "HostError": "jaxpool.hosts",
    "gather": "jaxpool.hosts",
    "load": "jaxpool.model",
    "Model": "jaxpool.model",
    "register": "jaxpool.models",
    "load_params": "jaxpool.converters.export",
    "read_recipe": "jaxpool.recipe",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("jaxpool")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxpool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
