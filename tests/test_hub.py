"""Where a model's name leads: directory, hub cache, installed package, hub."""

import shutil

import pytest

from jaxpool import hub


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
    assert hub.resolve(hub.MINILM) == snapshot


def test_a_revision_in_the_cache(empty_cache):
    snapshot = fill_cache(empty_cache, "org/name", revision="v2", commit="b" * 40)
    assert hub.resolve("org/name", revision="v2") == snapshot
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        hub.resolve("org/name", revision="v3")


def test_a_cache_entry_without_weights_does_not_count(empty_cache):
    (fill_cache(empty_cache, hub.MINILM) / "model.safetensors").unlink()
    assert hub.resolve(hub.MINILM).name == "model"


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
            return ["config.json", "model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin"]

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
