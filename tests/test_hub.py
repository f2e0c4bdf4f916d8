"""Where a model's name leads: directory, hub cache, installed package, hub."""

import json
import logging
import shutil

import pytest

from jaxpool import hub
from jaxpool.sentence_transformers import backbone_directory


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill_cache(root, name, revision="main", commit="a" * 40):
    snapshot = root / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_text("")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / revision).write_text(commit)
    return snapshot


def add_modules(snapshot, folder="", *kinds):
    modules = [{"type": "sentence_transformers.models.Transformer", "path": folder}]
    for i, kind in enumerate(kinds, 1):
        modules.append({"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"})
    (snapshot / "modules.json").write_text(json.dumps(modules))


def add(snapshot, *names):
    for name in names:
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_text("{}")


def test_a_directory_comes_first(tmp_path, empty_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_cache(empty_cache, "org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.resolve("org/name").resolve() == tmp_path / "org" / "name"


def test_then_the_hub_cache(empty_cache):
    assert hub.resolve("org/name" if fill_cache(empty_cache, "org/name") else "") == empty_cache / (
        "models--org--name/snapshots/" + "a" * 40
    )


def test_the_cache_comes_before_the_package(empty_cache):
    snapshot = fill_cache(empty_cache, hub.MINILM)
    add_modules(snapshot)
    assert hub.resolve(hub.MINILM) == snapshot


def test_a_revision_in_the_cache(empty_cache):
    snapshot = fill_cache(empty_cache, "org/name", revision="v2", commit="b" * 40)
    assert hub.resolve("org/name", revision="v2") == snapshot
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        hub.resolve("org/name", revision="v3")


def test_a_cache_entry_without_weights_does_not_count(empty_cache):
    (fill_cache(empty_cache, hub.MINILM) / "model.safetensors").unlink()
    assert hub.resolve(hub.MINILM).name == "model"


def test_weights_in_the_transformers_folder(empty_cache):
    snapshot = fill_cache(empty_cache, "org/name")
    (snapshot / "0_Transformer").mkdir()
    add_modules(snapshot, "0_Transformer")
    with pytest.raises(FileNotFoundError, match="without 0_Transformer/config.json"):
        hub.resolve("org/name")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(snapshot / "0_Transformer" / name)
    assert hub.resolve("org/name") == snapshot


def test_every_shard_and_module_is_needed(empty_cache):
    snapshot = fill_cache(empty_cache, "org/name")
    add_modules(snapshot, "", "Pooling", "Dense", "Normalize")
    (snapshot / "model.safetensors").unlink()
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(shards))
    for name in (
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "2_Dense/pytorch_model.bin",
    ):
        missing = "weights in .*2_Dense" if name.endswith(".bin") else name
        with pytest.raises(FileNotFoundError, match=f"in the hub cache without {missing}"):
            hub.resolve("org/name")
        add(snapshot, name)
    assert hub.resolve("org/name") == snapshot


def test_without_modules_json_the_package_comes_first(empty_cache):
    snapshot = fill_cache(empty_cache, hub.MINILM)
    assert hub.resolve(hub.MINILM) != snapshot


def test_without_modules_json_offline_warns(empty_cache, monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("jaxpool"), "warning", lambda text, *args: lines.append(text % args))
    snapshot = fill_cache(empty_cache, "org/name")
    assert hub.resolve("org/name") == snapshot
    assert len(lines) == 1
    assert "modules.json is not in the hub cache" in lines[0]
    (snapshot.parent.parent / ".no_exist" / snapshot.name).mkdir(parents=True)
    (snapshot.parent.parent / ".no_exist" / snapshot.name / "modules.json").touch()
    assert hub.resolve("org/name") == snapshot
    assert len(lines) == 1


def test_without_modules_json_the_hub_is_asked_once(empty_cache, monkeypatch):
    from huggingface_hub import snapshot_download

    snapshot = fill_cache(empty_cache, "org/name")
    asked = []

    class Api:
        def __init__(self, token): ...

        def list_repo_files(self, name, revision):
            asked.append(name)
            return ["config.json", "model.safetensors"]

    def download(name, **options):
        return snapshot_download(name, **options) if options.get("local_files_only") else str(snapshot)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.resolve("org/name") == hub.resolve("org/name") == snapshot
    assert asked == ["org/name"]


def test_a_tokenizer_needs_no_weights(empty_cache, tmp_path, monkeypatch):
    snapshot = fill_cache(empty_cache, "org/name")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="in the hub cache without a tokenizer"):
        hub.resolve_tokenizer("org/name")
    add(snapshot, "tokenizer.json")
    assert hub.resolve_tokenizer("org/name") == snapshot
    assert hub.resolve_tokenizer(snapshot) == snapshot
    assert (hub.resolve_tokenizer(hub.MINILM) / "tokenizer.json").exists()

    class Api:
        def __init__(self, token): ...

        def list_repo_files(self, name, revision):
            return ["modules.json", "tokenizer.json"]

    asked = {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **o: asked.update(o) or str(tmp_path))
    assert hub.resolve_tokenizer("org/other", "secret") == tmp_path
    assert asked["token"] == "secret"
    assert {"tokenizer*", "vocab*", "merges.txt", "*.model", "config.json"} <= set(asked["allow_patterns"])


def test_the_older_name_of_the_cache_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", str(tmp_path / "older"))
    assert hub.resolve("org/name" if fill_cache(tmp_path / "older", "org/name") else "").is_relative_to(tmp_path)


@pytest.mark.parametrize("path", ["../elsewhere", "/elsewhere", "1_Pooling/../../elsewhere"])
def test_modules_stay_inside_the_directory(tmp_path, path):
    modules = [{"type": "sentence_transformers.models.Transformer", "path": path}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"modules.json: module path '{path}'"):
        backbone_directory(tmp_path)


@pytest.mark.parametrize("name", [hub.MINILM, "all-MiniLM-L6-v2"])
def test_the_installed_package(name):
    assert (hub.resolve(name) / "model.safetensors").exists()


def test_the_package_is_not_another_revision():
    with pytest.raises(FileNotFoundError):
        hub.resolve(hub.MINILM, revision="v1")


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    shutil.copytree(hub.resolve(hub.MINILM), tmp_path / "altered_minilm" / "model")
    weights = tmp_path / "altered_minilm" / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"!")
    (tmp_path / "altered_minilm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    altered = hub.EmbeddedModel(**{**hub.EMBEDDED[hub.MINILM].__dict__, "package": "altered_minilm"})
    monkeypatch.setitem(hub.EMBEDDED, hub.MINILM, altered)
    with pytest.raises(ValueError, match=r"sha256 [0-9a-f]{64}, expected 53aa51172d14.*pip install"):
        hub.resolve(hub.MINILM)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "~/nowhere", "a/b/c"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        hub.resolve(name)


def test_offline_says_so():
    with pytest.raises(FileNotFoundError, match="'org/other'.*not in the hub cache, and HF_HUB_OFFLINE is set"):
        hub.resolve("org/other")


def test_downloading_asks_for_the_right_files(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    class Api:
        def __init__(self, token):
            asked["api token"] = token

        def list_repo_files(self, name, revision):
            return [
                "modules.json",
                "config.json",
                "model.safetensors",
                "pytorch_model.bin",
                "2_Dense/pytorch_model.bin",
            ]

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub.resolve("org/name", revision="v2", token="secret") == tmp_path
    assert (asked["name"], asked["revision"], asked["token"], asked["api token"]) == (
        "org/name",
        "v2",
        "secret",
        "secret",
    )
    assert "pytorch_model*.bin" in asked["ignore_patterns"]
    assert "*.bin" not in asked["ignore_patterns"]


def test_a_hub_that_answers_nothing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    class Api:
        def __init__(self, token): ...

        def list_repo_files(self, name, revision):
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(FileNotFoundError, match="'org/name'.*hub gave none.*no route to host"):
        hub.resolve("org/name")
