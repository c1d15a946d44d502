"""make push: what arrives at a hub on 127.0.0.1 is what was sent; what is refused is not sent."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, contents_of
from huggingface_hub import close_session, constants
from loopback_uploads import TOKEN, HubForUploads
from peft import LoraConfig, PeftModel, get_peft_model
from small_runs import LORA, OPT
from transformers import AutoModelForCausalLM

from posttrain import models, processes
from posttrain.__main__ import main
from posttrain.files import sha256_of
from posttrain.pushing import collect, push
from posttrain.run import Run

BASE = "someone/opt"
TO = "me/quick-run"
STRANGER = """
import sys
import torch
from huggingface_hub import snapshot_download
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

_, base, to, out, *places = sys.argv
tokens = torch.arange(5, 25)[None]
logits = {}
folder = snapshot_download(to)
with torch.no_grad():
    for place in places:
        model = AutoModelForCausalLM.from_pretrained(base)
        both = [
            PeftModel.from_pretrained(model, to, subfolder=place),
            AutoPeftModelForCausalLM.from_pretrained(f"{folder}/{place}"),  # names its base
        ]
        logits[place] = [loaded.eval()(tokens).logits for loaded in both]
torch.save(logits, out)
"""
# What the client offers for changing something on the hub
WRITING = re.compile(
    r"(create|delete|move|update|upload|super_squash|duplicate|preupload)_"
    r"(repo|commit|file|files|folder|large_folder|branch|tag|lfs_files|repo_settings|history"
    r"|collection|space|bucket|discussion|pull_request)s?|push_to_hub|CommitOperation\w+|CommitScheduler"
    r"|HfFileSystem|HfApi|metadata_update"
)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub that has the base, for this process, with an empty cache and a token."""
    hub = HubForUploads()
    hub.publish("models", BASE, OPT)
    files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield hub
    hub.close()
    close_session()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The committed run's evaluation with random adapters, as a run over a base on the hub."""
    hub = HubForUploads()
    commit = hub.publish("models", BASE, OPT)
    hub.close()
    folder = tmp_path_factory.mktemp("finished") / "results" / "quick"
    uncommitted = shutil.ignore_patterns(".*", "adapters", "checkpoints")
    shutil.copytree(ROOT / "results" / "example", folder, ignore=uncommitted)
    text = (folder / "run.json").read_text()
    record = json.loads(text)
    base = record["sources"]["base_model"]
    old_name = base["name"]
    for seed, model in enumerate(record["models"][1:]):
        torch.manual_seed(seed)
        adapted = get_peft_model(models.load_base(OPT), LoraConfig(**LORA))
        place = folder / model["adapter"]
        models.save_trained(adapted, place, OPT, BASE, commit, models.load_tokenizer(OPT))
        old = record["artifacts"][model["adapter"]]["sha256"]
        text = text.replace(old, sha256_of(place))
    record = json.loads(text.replace(json.dumps(old_name), json.dumps(BASE)))
    record["preset"] = "quick"
    record["sources"]["base_model"]["commit"] = commit
    record["sources"]["dataset"]["name"] = "/data/me/my_zecret {place}/pairs"
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished, tmp_path / "results" / "quick")
    return Run(tmp_path / "results", "quick")


def arrived(server, name=TO):
    """The files of a repository's newest commit."""
    repository = server.repositories[("models", name)]
    return repository.commits[repository.newest]


def change_record(run, **changes):
    path = run.path("run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load_as_a_stranger(server, run, folder):
    """Load the adapters by name in a new process, in both of PEFT's ways; return their logits."""
    variables = {
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "their home"),
    }
    places = [model.adapter for model in run.models[1:]]
    card = arrived(server)["adapters/sft_dpo/README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert TO in code and str(run.folder) not in code
    done = subprocess.run(
        [sys.executable, "-c", STRANGER + code, BASE, TO, str(folder / "logits.pt"), *places],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "logits.pt")


# ---- what arrives


@pytest.mark.slow
def test_what_arrives_is_what_was_sent_and_loads_by_name(server, run, tmp_path, capsys):
    before = contents_of(run.folder)
    expected = collect(run, TO)
    main(["push", f"RESULTS={run.folder.parent}", "RUN=quick", f"TO={TO}"])
    said = capsys.readouterr()
    files = arrived(server)
    assert set(files) == set(expected)
    for name, content in expected.items():
        assert files[name] == (content if isinstance(content, bytes) else content.read_bytes())
    for name in ("prompts.json", "responses.json", "adapters/sft/adapter_model.safetensors"):
        assert files[name] == run.path(name).read_bytes()
    assert contents_of(run.folder) == before
    assert "private" in said.out and f"{server.url}/{TO}" in said.out
    assert server.repositories[("models", TO)].private
    assert TOKEN not in said.out + said.err
    assert sum("/upload/" in request for request in server.written) == 3  # each adapter once
    theirs = load_as_a_stranger(server, run, tmp_path)
    tokens = torch.arange(5, 25)[None]
    for model in run.models[1:]:
        base = AutoModelForCausalLM.from_pretrained(OPT).eval()
        plain = base(tokens).logits
        own = PeftModel.from_pretrained(base, run.path(model.adapter)).eval()(tokens).logits
        assert not torch.allclose(own, plain)
        for logits in theirs[model.adapter]:
            assert torch.equal(logits, own)


def test_no_folder_of_this_computer_is_sent(run):
    for name, content in collect(run, TO).items():
        text = content if isinstance(content, bytes) else content.read_bytes()
        assert b"zecret" not in text, name
        assert str(run.folder.parent).encode() not in text, name
    assert b'"pairs"' in collect(run, TO)["run.json"]


def test_folder_that_no_record_names_is_refused(run, server):
    path = run.path("summary.md")
    path.write_text(path.read_text() + f"\n{ROOT}/data\n")
    with pytest.raises(ValueError, match="summary.md would name the folder"):
        push(run, TO)
    assert server.requests == []


def test_front_page_names_every_model_and_the_rates(run):
    page = collect(run, TO)["README.md"].decode()
    for model in run.models[1:]:
        assert f'`subfolder="{model.adapter}"`' in page
    assert run.path("summary.md").read_text().strip() in page


def test_public_only_if_it_is_said(server, run):
    push(run, TO, public=True)
    assert not server.repositories[("models", TO)].private


def test_repository_that_exists_needs_force_and_gets_one_more_commit(server, run):
    push(run, TO)
    first = server.repositories[("models", TO)]
    first.commits[first.newest] |= {"notes.txt": b"mine", "adapters/old/log.json": b"[]"}
    writes = len(server.written)
    with pytest.raises(ValueError, match="exists on the hub. Choose another name, or set FORCE"):
        push(run, TO)
    with pytest.raises(ValueError, match="is private on the hub, and this command does not"):
        push(run, TO, public=True, force=True)
    assert len(server.written) == writes
    path = run.path("summary.csv")
    path.write_text(path.read_text() + "\n")
    push(run, TO, force=True)
    assert len(first.commits) == 3
    assert arrived(server)["summary.csv"] == path.read_bytes()
    assert arrived(server)["notes.txt"] == b"mine"
    assert "adapters/old/log.json" not in arrived(server)


# ---- what is refused


def begin_training(run):
    """Leave a checkpoint, as a training does that was interrupted."""
    checkpoint = run.path("checkpoints/ipo/checkpoint-10")
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")


def spoil_adapter(run):
    path = run.path("adapters/dpo/adapter_model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])


def spoil_record(run):
    record = json.loads(run.path("run.json").read_text())
    record["artifacts"]["adapters/sft"]["made_from"] = {}
    run.path("run.json").write_text(json.dumps(record))


def name_local_base(run):
    record = json.loads(run.path("run.json").read_text())
    record["sources"]["base_model"]["commit"] = None
    run.path("run.json").write_text(json.dumps(record))


def change_answers(run):
    path = run.path("responses.json")
    path.write_text(path.read_text() + "\n")


def write_older_metrics(run):
    metrics = json.loads(run.path("metrics.json").read_text())
    del metrics["sha256"]
    run.path("metrics.json").write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: change_record(run, preset="demo"), "is a run of the demo"),
        (lambda run: change_record(run, imported={"what": "x"}), "contains imported results"),
        (begin_training, "still being trained"),
        (lambda run: run.path("metrics.json").unlink(), "SFT has not been evaluated"),
        (lambda run: run.path("report.html").unlink(), "it has no report.html"),
        (lambda run: run.path("run.json").unlink(), "has no run.json"),
        (lambda run: shutil.rmtree(run.path("adapters/sft")), "sft is missing, or was changed"),
        (spoil_adapter, "dpo is missing, or was changed"),
        (spoil_record, "earlier version of this repository"),
        (name_local_base, "is a folder of this computer"),
        (change_answers, "has not been evaluated as it is now"),
        (write_older_metrics, "written by another version"),
    ],
)
def test_run_that_is_not_fit_is_refused_without_the_hub(server, run, spoil, message, capsys):
    spoil(run)
    with pytest.raises(SystemExit) as end:
        main(["push", f"RESULTS={run.folder.parent}", "RUN=quick", f"TO={TO}"])
    assert message in str(end.value) + capsys.readouterr().err
    assert server.requests == []


NO_NAMES = ["quick", "a/b/c", "me/", "/x", "me/a b", "https://x.y/me/a", "me/a..b"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_name_that_is_none_is_refused(server, run, name):
    with pytest.raises(ValueError, match="is not the name of a repository. Write user/name"):
        push(run, name)
    assert server.requests == []


def test_no_token_offline_and_several_processes_are_refused(server, run, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(processes, "count", lambda: 2)
        with pytest.raises(ValueError, match="PROCESSES"):
            push(run, TO)
    with monkeypatch.context() as changed:
        changed.delenv("HF_TOKEN")
        with pytest.raises(ValueError, match="no access token"):
            push(run, TO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids"):
        push(run, TO)
    assert server.requests == []


# ---- what goes wrong on the way


@pytest.mark.parametrize(
    ("broken", "status", "message"),
    [
        ("/repos/create", 403, "The hub forbids it.*Nothing was sent"),
        ("/repos/create", 401, "does not accept the login.*Nothing was sent"),
        ("/repos/create", 409, "A repository of this name exists.*Nothing was sent"),
        ("/upload/", 403, "The hub forbids it.*was created, and no commit is known.*FORCE=True"),
        ("/commit/", 412, "Somebody else has changed"),
    ],
)
def test_failure_leaves_no_half_run_and_says_what_is_there(server, run, broken, status, message):
    server.broken, server.status = broken, status
    with pytest.raises(RuntimeError, match=message) as failure:
        push(run, TO)
    assert TOKEN not in str(failure.value)
    if ("models", TO) in server.repositories:
        assert arrived(server) == {}
        server.broken = None
        push(run, TO, force=True)
        assert "adapters/dpo/adapter_model.safetensors" in arrived(server)


def test_hub_that_is_not_there_is_explained(server, run):
    server.close()
    with pytest.raises(RuntimeError, match="cannot be reached.*Nothing was sent"):
        push(run, TO)


def test_wrong_token_is_explained(server, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RuntimeError, match="does not accept the login"):
        push(run, TO)
    assert server.repositories.keys() == {("models", BASE)}


# ---- nothing else is sent


def test_one_module_alone_names_what_sends():
    found = {}
    for path in (ROOT / "posttrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            name = name or (node.name if isinstance(node, ast.alias) else None)
            if isinstance(node, ast.keyword):
                name = node.arg
            if name and WRITING.fullmatch(name):
                found.setdefault(path.stem, set()).add(name)
    assert found.keys() == {"pushing"}, found
    assert {"HfApi", "create_repo", "create_commit", "CommitOperationAdd"} <= found["pushing"]
    for notebook in ROOT.glob("*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not WRITING.search("".join(cell["source"])), notebook
