"""By the names that everybody uses: what is asked of the hub, what a run keeps to, and what is said where it fails."""

import os
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import load, start
from hub import Hub, lay_out
from huggingface_hub import constants
from peft import PeftConfig
from test_runs import ADAPTERS, RAW, check_run, state_of

OPT, HH, JUDGE = "facebook/opt-350m", "Anthropic/hh-rlhf", "OpenAssistant/reward-model-deberta-v3-large-v2"
WANTED = {OPT: {"config.json", "generation_config.json", "merges.txt", "pytorch_model.bin", "special_tokens_map.json",
                "tokenizer_config.json", "vocab.json"},
          HH: {f"{subset}-base/{split}.jsonl.gz" for subset in ("harmless", "helpful") for split in ("train", "test")},
          JUDGE: {"config.json", "pytorch_model.bin", "spm.model", "tokenizer_config.json"}}
PARAMETERS = {"main.ipynb": {"BASE_MODEL": OPT, "DATASET": HH, "MAX_PAIRS": 100},
              "eval.ipynb": {"DATASET": HH, "REWARD_MODEL": JUDGE, "N_PROMPTS": 3, "MAX_NEW_TOKENS": 8}}


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


def change(folder):
    """Change a file of a repository to no effect."""
    for path in folder.rglob("config.json"):
        path.write_text(path.read_text() + "\n")
    (folder / "README.md").write_text("Changed.")


@pytest.fixture(scope="module")
def named_run(hub, tmp_path_factory):
    """Both notebooks by name, then once more from the cache alone; after the training the hub has newer commits."""
    folder = tmp_path_factory.mktemp("named")
    server, places = Hub(), lay_out(hub, folder / "hub")
    began = {name: server.publish(kind, name, place) for (kind, name), place in places.items()}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), server.url)
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "CI": "",
                   "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": None} | proxies
    asked = {}

    def run(notebook, phase, **changes):
        before = len(server.requests)
        process = start(notebook, folder, environment | changes, **PARAMETERS[notebook])
        assert process.wait() == 0, (folder / f"{notebook}.log").read_text()[-3000:]
        asked[phase] = server.requests[before:]

    run("main.ipynb", "training")
    for (kind, name), place in places.items():
        if name != JUDGE:
            change(place)
            server.publish(kind, name, place)
    run("eval.ipynb", "evaluation")
    made = state_of(folder / "results" / "demo", *ADAPTERS, *RAW)
    run("main.ipynb", "training again", HF_HUB_OFFLINE="1")
    server.close()
    run("eval.ipynb", "evaluation again")
    return SimpleNamespace(run=folder / "results" / "demo", began=began, asked=asked, made=made)


@pytest.mark.parametrize(("phase", "names"), [("training", [OPT, HH]), ("evaluation", [JUDGE])])
def test_hub_is_asked_once_and_for_what_is_needed(named_run, phase, names):
    """One question for the commit, one for its files, each file that is needed once; no other host, no telemetry."""
    asked, found = Counter(named_run.asked[phase]), {name: set() for name in names}
    assert set(asked.values()) == {1}
    for request in asked:
        name = next((name for name in names if f"/{name}/" in request), None)
        assert name, request
        if request.startswith("GET") and "/resolve/" in request:
            commit, _, path = request.split("/resolve/")[1].partition("/")
            assert commit == named_run.began[name]
            found[name].add(path)
    assert found == {name: WANTED[name] for name in names}
    assert sum("/api/" in request for request in asked) == 2 * len(names)


def test_second_run_asks_nobody(named_run):
    """Run again, with a network or without, nothing is asked and nothing made again."""
    assert named_run.asked["training again"] == named_run.asked["evaluation again"] == []
    assert state_of(named_run.run, *ADAPTERS, *RAW) == named_run.made


def test_run_keeps_the_commits_that_it_began_with(named_run):
    """Though the hub has newer commits, the evaluation loads what the training did; the records say so."""
    check_run(named_run.run, 3)
    record, evaluated = load(named_run.run / "run.json"), load(named_run.run / "eval.json")
    assert record["commits"] == {name: named_run.began[name] for name in (OPT, HH)}
    assert evaluated["commits"] == named_run.began
    assert record["contents"]["base_model"] == named_run.began[OPT]
    assert [model["base"] for model in record["models"]] == [OPT] * 4
    for adapter in ADAPTERS:
        config = PeftConfig.from_pretrained(named_run.run / adapter)
        assert (config.base_model_name_or_path, config.revision) == (OPT, named_run.began[OPT])


# ---- single questions

def publish(server, name, folder, *paths, **options):
    """Publish a model of small files; return its commit."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path).write_text(f"{path} of {name}")
    return server.publish("models", name, folder, **options)


def test_newest_commit_or_the_one_named(main, online, tmp_path):
    """Without a commit the newest is taken; an older one can be named; what is cached is not asked for."""
    first = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    assert main.commit_of(main.fetch("BASE_MODEL", "a/b")) == first
    second = publish(online, "a/b", tmp_path / "a", "vocab.json")
    assert main.commit_of(main.fetch("BASE_MODEL", "a/b")) == second
    asked = len(online.requests)
    assert main.commit_of(main.fetch("BASE_MODEL", "a/b", first)) == first
    assert len(online.requests) == asked
    assert main.commit_of(str(tmp_path)) is None


def test_pickles_only_where_there_are_no_safetensors(main, online, tmp_path):
    """Of a model that has both, the safetensors are fetched."""
    publish(online, "a/both", tmp_path / "a", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5")
    folder = main.fetch("BASE_MODEL", "a/both")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_unknown_and_private_names(main, online):
    """The hub says the same of both, so the sentence has both."""
    with pytest.raises(ValueError, match="BASE_MODEL = 'facebook/opt-35m' cannot be had .* the spelling.*HF_TOKEN"):
        main.fetch("BASE_MODEL", "facebook/opt-35m")
    with pytest.raises(ValueError, match="DATASET = 'Anthropic/hh-rlfh' cannot be had .* Check the spelling"):
        main.fetch("DATASET", "Anthropic/hh-rlfh", kind="dataset")


def test_gated_name(main, online, tmp_path):
    """A model behind a form: the sentence says how to get in."""
    publish(online, "a/gated", tmp_path / "a", "config.json", "model.safetensors", gated=True)
    with pytest.raises(ValueError, match="REWARD_MODEL = 'a/gated' cannot be had .* gated: ask for access"):
        main.fetch("REWARD_MODEL", "a/gated")


def test_commit_that_is_gone(main, online, tmp_path):
    """A commit that the hub has no more, and the cache neither."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/b' cannot be had .* gone from the hub: set FRESH"):
        main.fetch("BASE_MODEL", "a/b", "0" * 40)


def test_no_network(main, online, monkeypatch, tmp_path):
    """Without a network the cache is taken; where it has nothing the sentence names it."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    main.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert main.commit_of(main.fetch("BASE_MODEL", "a/b")) == commit
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/c' cannot be had .* in the cache, .*/cache, .* a network"):
        main.fetch("BASE_MODEL", "a/c")


def test_offline(main, online, monkeypatch, tmp_path):
    """HF_HUB_OFFLINE: a filled cache is enough, an empty one ends in a sentence that names the variable."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    main.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main.commit_of(main.fetch("BASE_MODEL", "a/b")) == commit
    with pytest.raises(ValueError, match="BASE_MODEL = 'a/c' cannot be had .* HF_HUB_OFFLINE forbids"):
        main.fetch("BASE_MODEL", "a/c")


def test_download_that_broke_off(main, online, monkeypatch, tmp_path):
    """A part of a model in the cache is completed where there is a network, and named where there is none."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    folder = main.fetch("BASE_MODEL", "a/b")
    os.remove(os.path.join(folder, "model.safetensors"))
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="BASE_MODEL = 'a/b' cannot be had .* Only a part of it is in .*network"):
            main.fetch("BASE_MODEL", "a/b")
    main.fetch("BASE_MODEL", "a/b")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_repository_without_weights(main, hub, online, tmp_path):
    """A repository with a config alone is no model; what it holds is listed."""
    (tmp_path / "a").mkdir()
    shutil.copy(hub / "opt" / "config.json", tmp_path / "a")
    online.publish("models", "a/empty", tmp_path / "a")
    with pytest.raises(ValueError, match=r"BASE_MODEL: .* holds no weights, .* but \['config\.json'\]"):
        main.identify_model("BASE_MODEL", main.fetch("BASE_MODEL", "a/empty"))


def test_dataset_in_another_layout(main, online, tmp_path):
    """A dataset on the hub without HH-RLHF's files: the sentence says which file is missing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.parquet").write_bytes(b"")
    online.publish("datasets", "a/other", tmp_path / "a")
    folder = main.fetch("DATASET", "a/other", kind="dataset", files=["harmless-base/*.jsonl.gz"])
    with pytest.raises(ValueError, match=r"DATASET: .* has no harmless-base/train\.jsonl\.gz, as Anthropic"):
        main.load_split(folder, "harmless-base", "train")


def test_nothing_is_written_where_a_name_is_unknown(tmp_path):
    """main.ipynb with a name that is nowhere to be had ends in the sentence and leaves no folder of results."""
    process = start("main.ipynb", tmp_path, {"HF_HOME": str(tmp_path / "home")}, BASE_MODEL="facebook/opt-35m")
    assert process.wait() != 0
    said = (tmp_path / "main.ipynb.log").read_text()
    assert "BASE_MODEL = 'facebook/opt-35m' cannot be had (LocalEntryNotFoundError)." in said
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"main.ipynb", "main.ipynb.log"}
