"""Uploading a run to a hub on 127.0.0.1 with the real client: what arrives, and what is refused."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, command, load
from huggingface_hub import constants, snapshot_download
from loopback_uploads import NEW, TOKEN, UploadHub
from test_hub import ask

from posttrain import generation
from posttrain.files import sha256_of, write
from posttrain.page import write_page
from posttrain.pushing import push
from posttrain.run import Run

BASE = "facebook/opt-350m"
TO = "someone/quick"
UPLOADING = {
    "create_commit", "create_repo", "upload_file", "upload_folder", "upload_large_folder",
    "push_to_hub", "preupload_lfs_files", "CommitOperationAdd", "CommitOperationDelete",
    "delete_repo", "delete_file", "delete_folder", "update_repo_settings", "commit_scheduler",
    "CommitScheduler", "metadata_update",
}  # fmt: skip


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub with the base of the run, and this process logged in there."""
    server = UploadHub()
    server.base = server.publish("models", BASE, ROOT / "demo" / "hub" / "opt")
    ask(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.fixture
def run(copied_run, server, tmp_path):
    """A finished run whose base is on that hub, and whose judge is a folder of this computer."""
    record = load(copied_run.run / "run.json")
    record["preset"] = "quick"
    record["sources"]["base_model"] = {"name": BASE, "commit": server.base, "sha256": None}
    record["sources"]["reward_model"]["name"] = str(tmp_path / "my <judge>")
    write(copied_run.run / "run.json", record)
    write_page(copied_run.run)
    return Run(tmp_path / "results", "demo")


def ask_as_stranger(card, server, folder):
    """Run the snippet of a card in another process, which only knows the hub's address."""
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    variables = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ---- what arrives


def test_what_arrives_is_the_run_and_loads_by_name(run, server, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    address = push(run, TO)
    assert address.startswith(f"{server.url}/{TO}/commit/")
    assert server.repositories["models", TO].private
    assert [what for what, _ in server.writes].count("commit") == 1
    arrived = server.files(TO)
    for name in ("prompts.json", "responses.json", "scores.json", "classification.json"):
        assert arrived[name] == run.path(name).read_bytes()
        assert sha256_of(run.path(name)) == yaml.safe_load(arrived["metrics.json"])["sha256"][name]
    for place in ("adapters/sft", "adapters/dpo", "adapters/sft_dpo"):
        weights = f"{place}/adapter_model.safetensors"
        assert arrived[weights] == run.path(weights).read_bytes()
        assert f"{place}/README.md" in arrived
    assert before == {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    unwanted = [path for path in arrived if path.endswith((".ipynb", ".lock")) or "/." in path]
    assert not unwanted
    everything = b"\n".join(arrived.values())
    assert str(tmp_path).encode() not in everything
    assert TOKEN.encode() not in everything
    assert yaml.safe_load(arrived["run.json"])["sources"]["reward_model"]["name"] == "my <judge>"
    assert load(run.path("run.json"))["sources"]["reward_model"]["name"] == f"{tmp_path}/my <judge>"
    said = capsys.readouterr().out
    assert "only you and your organization can see" in said
    assert TOKEN not in said
    card = arrived["adapters/sft_dpo/README.md"].decode()
    answer = ask_as_stranger(card, server, tmp_path)
    question = re.search(r"Human: (.*?)\\n\\nAssistant:", card)[1]
    base = run.source("base_model", str(ROOT / "demo" / "hub" / "opt"))
    expected = generation.ask(run, "SFT+DPO", [question], base, max_new_tokens=48)
    assert answer.strip() == expected[0]


def test_front_page_lists_the_models_and_names_a_licence(run, server):
    push(run, TO)
    text = server.files(TO)["README.md"].decode()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["base_model"] == BASE
    assert metadata["license_name"] == "opt-175b"
    for place in ("adapters/sft", "adapters/dpo", "adapters/sft_dpo"):
        assert f"({place}/README.md)" in text
    assert run.path("summary.md").read_text().split("\n")[4] in text


def test_files_can_be_had_by_name(run, server, tmp_path):
    push(run, TO)
    there = Path(snapshot_download(TO, cache_dir=tmp_path / "cache"))
    for path, content in server.files(TO).items():
        assert (there / path).read_bytes() == content


def test_public_only_if_asked(run, server, capsys):
    push(run, TO, public=True)
    assert not server.repositories["models", TO].private
    assert "everybody can see" in capsys.readouterr().out


# ---- a repository that exists


def test_repository_with_files_is_left_alone_unless_forced(run, server):
    others = NEW | {"notes.md": b"Mine.", "adapters/ipo/adapter_config.json": b"{}"}
    server.create(TO, private=True, files=others)
    with pytest.raises(ValueError, match=f"TO = '{TO}' exists and has 2 files.*FORCE=True"):
        push(run, TO)
    assert server.files(TO) == others and not server.writes
    push(run, TO, force=True)
    assert server.files(TO)["notes.md"] == b"Mine."
    assert "adapters/ipo/adapter_config.json" not in server.files(TO)
    assert "adapters/sft/adapter_config.json" in server.files(TO)


@pytest.mark.parametrize(("private", "public"), [(True, True), (False, False)])
def test_who_may_see_a_repository_is_never_changed(run, server, private, public):
    server.create(TO, private=private)
    with pytest.raises(ValueError, match="Nothing here changes who may see"):
        push(run, TO, public=public, force=True)
    assert server.files(TO) == NEW and not server.writes


def test_failed_upload_leaves_an_empty_repository_and_can_be_repeated(run, server):
    for step in ("put", "commit"):
        server.fail = step
        with pytest.raises(ValueError, match=f"TO = '{TO}': nothing was uploaded"):
            push(run, TO)
        assert server.files(TO) == NEW
    server.fail = None
    push(run, TO)
    assert "adapters/sft/README.md" in server.files(TO)


# ---- what is refused before the hub is asked to write


@pytest.mark.parametrize("to", ["quick", "a/b/c", "a b/c", "/quick", "user/", "../x", "a/b.git"])
def test_what_is_no_name_of_a_repository(run, server, to):
    with pytest.raises(ValueError, match="^TO = "):
        push(run, to)
    assert not server.writes


def test_no_token(run, server, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(ValueError, match="There is no token.*hf auth login"):
        push(run, TO)
    assert not server.requests


def test_offline(run, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        push(run, TO)
    assert not server.requests


def spoil(run, how):
    """Make a run one that is not uploaded."""
    record = load(run.path("run.json"))
    if how == "demo":
        record["preset"] = "demo"
    elif how == "folder":
        record["sources"]["base_model"] = {"name": "my/opt", "commit": None, "sha256": "0"}
    elif how == "imported":
        record["models"] = record["models"][:1]
    elif how == "new model":
        another = record["models"][1] | {"name": "IPO", "adapter": "adapters/ipo"}
        record["artifacts"]["adapters/ipo"] = record["artifacts"]["adapters/sft"]
        shutil.copytree(run.path("adapters/sft"), run.path("adapters/ipo"))
        record["models"].append(another)
    elif how == "adapter":
        path = run.path("adapters/dpo/adapter_model.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "training":
        write(run.path("checkpoints/dpo/checkpoint-10/trainer_state.json"), {})
    elif how == "metrics":
        run.path("metrics.json").unlink()
    elif how == "old metrics":
        write(run.path("scores.json"), load(run.path("scores.json"))[1:])
    elif how == "page":
        run.path("report.html").unlink()
    write(run.path("run.json"), record)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("demo", "a run of the demo"),
        ("folder", "The base of .* is the folder my/opt"),
        ("imported", "has no trained model"),
        ("new model", "no measures of IPO as it is now"),
        ("adapter", "adapters/dpo is missing or was changed"),
        ("training", "a training has not ended"),
        ("metrics", "no measures of SFT as it is now"),
        ("old metrics", "no measures of SFT as it is now"),
        ("page", "has no report.html"),
    ],
)
def test_unfit_runs(run, server, how, message):
    spoil(run, how)
    with pytest.raises(ValueError, match=message):
        push(run, TO)
    assert not server.requests


def test_command_says_what_it_needs_and_takes_no_run_that_is_none(tmp_path):
    done = command("push", "RUN=quick")
    assert done.returncode == 1 and "make push RUN=quick TO=user/name" in done.stderr
    done = command("push", f"RESULTS={tmp_path}", "RUN=quick", f"TO={TO}")
    assert done.returncode == 1 and "quick" in done.stderr
    assert not any(tmp_path.iterdir())


def test_nothing_else_in_the_project_uploads():
    found = {}
    for path in [*(ROOT / "posttrain").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [getattr(node, "attr", None), getattr(node, "id", None)]
            names += [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            if UPLOADING.intersection(names):
                found[path.name] = True
    assert list(found) == ["pushing.py"]
    for name in ("main.ipynb", "eval.ipynb", "compare.ipynb"):
        assert not re.search("|".join(UPLOADING), (ROOT / name).read_text(encoding="utf-8"))
