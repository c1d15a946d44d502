"""run.json: what it may say, which paths it may name, and what is said where versions changed."""

import json

import pytest
from conftest import MODELS, load

from posttrain import ledger
from posttrain.files import read_json
from posttrain.ledger import ADAPTERS, Ledger, Model, changes, environment

OUTSIDE = ["../../elsewhere", "../sft", "adapters/../../sft", "/etc", "/", "..", "adapters/../..", "./../x", "a/b/c",
           "~/x", "C:\\models", "//server/share", "\x00", "models/../../../opt", "file:///etc", "https://example.org/x"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["base", "adapter"])
def test_path_out_of_the_run_is_refused(demo_run, tmp_path, field, name):
    """An adapter has its place in the folder; a base is the one that the settings name, or the run's own SFT model."""
    record = load(demo_run.run / "run.json")
    record["models"][2][field] = name
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*(names the base|Input should be 'adapters/sft')"):
        read_json(tmp_path / "run.json", Ledger)


@pytest.mark.parametrize("damage", [
    "", "{", "null", "[]", "{}", '{"run": 5}', '{"run": "demo", "settings": 3}', "[" * 10_000,
    '{"run": "demo", "artifacts": {"prompts.json": {}}}', '{"run": "demo", "artifacts": [1]}',
    *(f'{{"run": "demo", "settings": {{"training": {{"base_model": "x"}}}}, "models": [{row}]}}' for row in (
        "3", "{}", '{"name": "Base"}', '{"name": "Base", "base": "x"}', '{"name": "Base", "base": "x", "adapter": 5}',
        '{"name": "SFT", "base": "x", "adapter": null}', '{"name": "Other", "base": "x", "adapter": null}',
        '{"name": "Base", "base": 3, "adapter": null}', '{"name": ["Base"], "base": "x", "adapter": null}'))])
def test_damaged_run_json_is_named(tmp_path, damage):
    """Whatever is the matter with run.json, the message says that it is damaged, and which file it is."""
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_json(tmp_path / "run.json", Ledger)


def test_models_stand_in_their_order():
    """Base first, then as everywhere."""
    rows = {name: Model(name=name, base="x", adapter=ADAPTERS.get(name)) for name in MODELS}
    settings = {"training": {"base_model": "x"}}
    assert Ledger(run="a", settings=settings, models=list(rows.values())).models[3].name == "SFT+DPO"
    with pytest.raises(ValueError, match="stand in the order"):
        Ledger(run="a", settings=settings, models=[rows["Base"], rows["DPO"], rows["SFT"]])


def test_names_are_the_same_everywhere():
    """The models and the adapters' places."""
    assert list(ADAPTERS) == MODELS[1:]
    assert tuple(MODELS) == ledger.MODELS


def test_environment_says_where_and_with_what():
    """Python, the packages that matter, device, the commit, and the sha256 of the code."""
    found = environment()
    assert {"torch", "transformers", "trl", "peft"} <= set(found["packages"])
    assert found["device"].startswith("CPU")
    assert found["git_commit"] is None or len(found["git_commit"]) == 40
    assert len(found["code_sha256"]) == 64


def made_in(**differing):
    """Return a ledger with one artifact that was made in this environment but for what differs."""
    then = environment() | differing
    made = {"made_from": {}, "sha256": "x", "seconds": 1, "environment": then}
    return Ledger(run="a", artifacts={"adapters/sft": made})


def test_other_versions_are_told_in_a_sentence_each():
    """Versions, device and code count; the commit does not."""
    now = environment()
    assert changes(made_in()) == changes(made_in(git_commit="abc")) == []
    packages = now["packages"] | {"trl": "9.9"}
    assert changes(made_in(python="3.12.9", packages=packages, code_sha256="f" * 64, device="Tesla T4")) == [
        f"adapters/sft was made with python 3.12.9, now it is {now['python']}.",
        f"adapters/sft was made with device Tesla T4, now it is {now['device']}.",
        f"adapters/sft was made with code ffffffff, now it is {now['code_sha256'][:8]}.",
        f"adapters/sft was made with trl 9.9, now it is {now['packages']['trl']}."]
    assert len(changes(made_in(packages={}))) == len(now["packages"])
