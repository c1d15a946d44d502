"""Names on the hub: which commit, which files, and what is said where a name cannot be had."""

import os

import pytest
from conftest import ROOT
from huggingface_hub import constants
from loopback import Hub

from posttrain import hh, hub


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A hub without repositories that this process asks, with an empty cache of its own."""
    server = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
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


def test_newest_commit_or_the_one_named(online, tmp_path):
    """Without a commit the newest is taken; an older one can be named; what is cached is not asked for."""
    first = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == first
    second = publish(online, "a/b", tmp_path / "a", "vocab.json")
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == second
    asked = len(online.requests)
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b", commit=first)) == first
    assert len(online.requests) == asked
    assert hub.commit_of(tmp_path) is None


def test_pickles_only_where_there_are_no_safetensors(online, tmp_path):
    """Of a model that has both, the safetensors are fetched."""
    publish(online, "a/both", tmp_path / "a", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5")
    folder = hub.fetch("BASE_MODEL", "a/both")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_unknown_and_private_names(online):
    """The hub says the same of both, so the sentence has both."""
    with pytest.raises(ValueError, match="BASE_MODEL = 'facebook/opt-35m' cannot be had .* the spelling.*HF_TOKEN"):
        hub.fetch("BASE_MODEL", "facebook/opt-35m")
    with pytest.raises(ValueError, match="DATASET = 'Anthropic/hh-rlfh' cannot be had .* Check the spelling"):
        hub.fetch("DATASET", "Anthropic/hh-rlfh", hh.files("base"))


def test_gated_name(online, tmp_path):
    """A model behind a form: the sentence says how to get in."""
    publish(online, "a/gated", tmp_path / "a", "config.json", "model.safetensors", gated=True)
    with pytest.raises(ValueError, match="REWARD_MODEL = 'a/gated' cannot be had .* gated: ask for access"):
        hub.fetch("REWARD_MODEL", "a/gated")


def test_commit_that_is_gone(online, tmp_path):
    """A commit that the hub has no more, and the cache neither."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/b' cannot be had .* gone from the hub: set FRESH"):
        hub.fetch("BASE_MODEL", "a/b", commit="0" * 40)


def test_no_network(online, monkeypatch, tmp_path):
    """Without a network the cache is taken; where it has nothing the sentence names it."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/c' cannot be had .* in the cache, .*/cache, .* a network"):
        hub.fetch("BASE_MODEL", "a/c")


def test_offline(online, monkeypatch, tmp_path):
    """HF_HUB_OFFLINE: a filled cache is enough, an empty one ends in a sentence that names the variable."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/c' cannot be had .* HF_HUB_OFFLINE forbids"):
        hub.fetch("BASE_MODEL", "a/c")


def test_download_that_broke_off(online, monkeypatch, tmp_path):
    """A part of a model in the cache is completed where there is a network, and named where there is none."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    folder = hub.fetch("BASE_MODEL", "a/b")
    os.remove(os.path.join(folder, "model.safetensors"))
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="BASE_MODEL = 'a/b' cannot be had .* Only a part of it is in .*network"):
            hub.fetch("BASE_MODEL", "a/b")
    hub.fetch("BASE_MODEL", "a/b")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_repository_without_weights(online, tmp_path):
    """A repository, or a folder, without config or weights is no model; what it holds is listed."""
    publish(online, "a/empty", tmp_path / "a", "config.json")
    publish(online, "a/weights", tmp_path / "b", "model.safetensors")
    for name, held in (("a/empty", "config"), ("a/weights", "model"), (str(tmp_path / "a"), "config")):
        with pytest.raises(ValueError, match=rf"BASE_MODEL = '{name}' is no model: .* holds \['{held}\."):
            hub.fetch("BASE_MODEL", name)


def test_dataset_in_another_layout(online, tmp_path):
    """A dataset on the hub without HH-RLHF's files: the sentence says which file is missing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.parquet").write_bytes(b"")
    online.publish("datasets", "a/other", tmp_path / "a")
    folder = hub.fetch("DATASET", "a/other", hh.files("base"))
    with pytest.raises(ValueError, match=r"DATASET: .* has no harmless-base/train\.jsonl\.gz, as Anthropic"):
        hh.read_split(folder, "harmless-base", "train")


@pytest.mark.parametrize("name", ["nowhere", "no/such/folder", "data/nowhere", "demo/hub/optt", ".", "~/x", "/no/such"])
def test_folder_that_is_not_there(tmp_path, monkeypatch, name):
    """Absolute or relative, be it one that could also be a name on the hub: the setting and its value."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"DATASET = '{name}' (cannot be had|is no model)") as refusal:
        hub.fetch("DATASET", name)
    assert ("The stand-ins come with the repository. In Colab" in str(refusal.value)) == name.startswith("demo/hub")


def test_stand_ins_that_are_not_there(monkeypatch):
    """In the repository it is said how they are made."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="`python demo/build.py` makes it"):
        hub.fetch("BASE_MODEL", "demo/hub/optt")


def test_proxy_that_refuses(online, monkeypatch, tmp_path):
    """An error of the connection that is no OSError is a sentence too."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/b' cannot be had"):
        hub.fetch("BASE_MODEL", "a/b")
