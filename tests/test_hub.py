"""Names on the hub: commits, files, and the message for a name that cannot be loaded."""

import pytest
from conftest import ROOT
from huggingface_hub import constants
from loopback import Hub

from posttrain import data, hub


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A hub without repositories for this process, and an empty cache."""
    server = Hub()
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.close()


def publish(server, name, folder, *paths, **options):
    """Publish a model of small files; return its commit."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path).write_text(f"{path} of {name}")
    return server.publish("models", name, folder, **options)


def names_in(folder):
    """List the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_newest_commit_or_the_one_named(online, tmp_path):
    """The newest commit is used, or an older one by its name without asking the hub again."""
    first = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == first
    second = publish(online, "a/b", tmp_path / "a", "vocab.json")
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == second
    requests = len(online.requests)
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b", commit=first)) == first
    assert len(online.requests) == requests
    assert hub.commit_of(tmp_path) is None


def test_pickles_only_where_there_are_no_safetensors(online, tmp_path):
    """If a model has both, only the safetensors are downloaded."""
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    publish(online, "a/both", tmp_path / "a", *both)
    publish(online, "a/old", tmp_path / "b", "config.json", "pytorch_model.bin")
    folder = hub.fetch("BASE_MODEL", "a/both")
    assert names_in(folder) == ["config.json", "model.safetensors"]
    assert names_in(hub.fetch("BASE_MODEL", "a/old")) == ["config.json", "pytorch_model.bin"]


def test_unknown_and_private_names(online):
    """The hub gives the same answer for both, so the message covers both."""
    refusal = "BASE_MODEL = 'facebook/opt-35m' cannot be loaded .* the spelling.*HF_TOKEN"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "facebook/opt-35m")
    refusal = "DATASET = 'Anthropic/hh-rlfh' cannot be loaded .* Check the spelling"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("DATASET", "Anthropic/hh-rlfh", data.list_files("base"))


def test_gated_name(online, tmp_path):
    """For a gated model, the message says how to get access."""
    publish(online, "a/gated", tmp_path / "a", "config.json", "model.safetensors", gated=True)
    refusal = "REWARD_MODEL = 'a/gated' cannot be loaded .* gated: ask for access"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("REWARD_MODEL", "a/gated")


def test_commit_that_is_gone(online, tmp_path):
    """A commit that is missing on the hub and in the cache is refused."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    refusal = r"BASE_MODEL = 'a/b' cannot be loaded .* gone from the hub\. Set FRESH"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "a/b", commit="0" * 40)


def test_no_network(online, monkeypatch, tmp_path):
    """Without a network the cache is used; if it is empty, the message names it."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    refusal = "BASE_MODEL = 'a/c' cannot be loaded .* in the cache, .*/cache, .* a network"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "a/c")


def test_offline(online, monkeypatch, tmp_path):
    """Under HF_HUB_OFFLINE a filled cache is enough; if it is empty, the message names it."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    refusal = "BASE_MODEL = 'a/c' cannot be loaded .* HF_HUB_OFFLINE forbids asking"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "a/c")


def test_download_that_broke_off(online, monkeypatch, tmp_path):
    """A partial model is completed with a network and refused by name without one."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    folder = hub.fetch("BASE_MODEL", "a/b")
    (folder / "model.safetensors").unlink()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        refusal = "BASE_MODEL = 'a/b' cannot be loaded .* Only a part of it is in .*network"
        with pytest.raises(ValueError, match=refusal):
            hub.fetch("BASE_MODEL", "a/b")
    hub.fetch("BASE_MODEL", "a/b")
    assert names_in(folder) == ["config.json", "model.safetensors"]


def test_repository_without_weights(online, tmp_path):
    """Without config or weights it is not a model, and its files are listed."""
    publish(online, "a/config", tmp_path / "a", "config.json")
    publish(online, "a/weights", tmp_path / "b", "model.safetensors")
    publish(online, "a/text", tmp_path / "c", "README.md")
    files = {
        "a/config": r"\['config\.json'\]",
        "a/weights": r"\['model\.safetensors'\]",
        "a/text": r"\[\]",
        str(tmp_path / "a"): r"\['config\.json'\]",
    }
    for name, listed in files.items():
        refusal = rf"BASE_MODEL = '{name}' is not a model\. .* contains {listed}\."
        with pytest.raises(ValueError, match=refusal):
            hub.fetch("BASE_MODEL", name)


def test_dataset_in_another_layout(online, tmp_path):
    """A dataset without HH-RLHF's files is refused, and the missing file is named."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.parquet").write_bytes(b"")
    online.publish("datasets", "a/other", tmp_path / "a")
    folder = hub.fetch("DATASET", "a/other", data.list_files("base"))
    refusal = r"DATASET: .* has no file harmless-base/train\.jsonl\.gz\. .* as in Anthropic"
    with pytest.raises(ValueError, match=refusal):
        data.read_split(folder, "harmless-base", "train")


@pytest.mark.parametrize(
    "name", ["nowhere", "no/such/folder", "data/nowhere", "demo/hub/optt", ".", "~/x", "/no/such"]
)
def test_folder_that_is_not_there(tmp_path, monkeypatch, name):
    """For any kind of path, the message names the setting and its value."""
    monkeypatch.chdir(tmp_path)
    refusal = f"DATASET = '{name}' (cannot be loaded|is not a model)"
    with pytest.raises(ValueError, match=refusal) as error:
        hub.fetch("DATASET", name)
    hint = "demo/hub are part of the repository: start in its folder"
    assert (hint in str(error.value)) == name.startswith("demo/hub")


def test_stand_ins_that_are_not_there(monkeypatch):
    """In the repository the message says how they are made."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="are made by `python demo/build.py`"):
        hub.fetch("BASE_MODEL", "demo/hub/optt")


def test_proxy_that_refuses(online, monkeypatch):
    """A connection error that is not an OSError is explained too."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/b' cannot be loaded"):
        hub.fetch("BASE_MODEL", "a/b")
