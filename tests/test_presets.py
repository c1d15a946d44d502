"""Settings: what is refused and in which words, what the presets are, which preset runs where."""

import math

import pytest
import torch
from conftest import ROOT, load

from posttrain import presets
from posttrain.presets import Evaluation, Training


@pytest.mark.parametrize(("kind", "parameter", "value", "allowed"), [
    (Training, "MAX_PAIRS", 1, "greater than or equal to 2"), (Training, "MAX_PAIRS", 1.5, "valid integer"),
    (Training, "MAX_PAIRS", "50", "valid integer"), (Training, "SEED", -1, "greater than or equal to 0"),
    (Training, "SEED", 2**32, f"less than {2**32}"), (Training, "SEED", True, "valid integer"),
    (Training, "DATASET", 5, "valid string"), (Training, "BASE_MODEL", ["a"], "valid string"),
    (Evaluation, "N_PROMPTS", 0, "greater than or equal to 1"), (Evaluation, "N_PROMPTS", "all", "valid integer"),
    (Evaluation, "MAX_NEW_TOKENS", 0, "greater than or equal to 1"),
    (Evaluation, "HARMLESS_FROM", "abc", "valid number"), (Evaluation, "HELPFUL_ABOVE", math.nan, "finite number"),
    (Evaluation, "PROTOCOL", "papers", "'default' or 'paper'")])
def test_value_that_cannot_be(kind, parameter, value, allowed):
    """A refusal names the parameter, what was found and what is allowed."""
    with pytest.raises(ValueError, match=rf"^{parameter} = .*: .*{allowed}") as refusal:
        presets.choose(kind, "demo", **{parameter: value})
    assert repr(value) in str(refusal.value)


def test_parameters_stand_above_the_preset(tmp_path):
    """None takes the preset's value; whole numbers may be thresholds, paths names."""
    s = presets.choose(Training, "demo", MAX_PAIRS=7, SEED=None, DATASET=tmp_path, BASE_MODEL="a/b")
    assert (s.max_pairs, s.seed, s.dataset, s.base_model) == (7, 0, str(tmp_path), "a/b")
    assert presets.choose(Evaluation, "demo", HARMLESS_FROM=-2).harmless_from == -2
    assert presets.choose(Evaluation, "demo").n_prompts is None


def test_settings_do_not_change():
    """What a run was begun with stays so; names that no table has are refused."""
    s = presets.choose(Training, "demo")
    with pytest.raises(ValueError, match="frozen"):
        s.seed = 1
    with pytest.raises(ValueError, match="^MAX_PAIR = 3: Extra inputs"):
        presets.choose(Training, "demo", MAX_PAIR=3)


@pytest.mark.parametrize("kind", [Training, Evaluation])
def test_every_setting_has_a_reason_and_every_preset_works(kind):
    """The notebooks' table holds every setting of this run and of every preset, with its reason."""
    assert set(kind.PRESETS) == set(presets.PRESETS)
    shown = presets.table(presets.choose(kind, "demo", SEED=7)).data
    assert list(shown.columns) == ["this run", *presets.PRESETS, "why"]
    assert set(shown.index) == set(kind.model_fields) - {"preset"}
    assert (shown["why"].str.len() > 3).all()
    assert list(shown.loc["seed"])[:2] == ["7", "0"]
    for name in presets.PRESETS:
        s = presets.choose(kind, name)
        assert s.preset == name
        assert set(kind.model_fields) > kind.INDIFFERENT
        assert set(s.decisive()) == set(kind.model_fields) - kind.INDIFFERENT - {"preset"}


def test_table_of_two_presets_shows_what_differs():
    """main.ipynb's table of `full` against `paper` lists every setting that differs, and no other."""
    shown = presets.differences(Training, "full", "paper").data
    full, paper = (presets.choose(Training, name).model_dump(exclude={"preset"}) for name in ("full", "paper"))
    assert set(shown.index) == {name for name in full if full[name] != paper[name]}


def test_any_setting_can_be_set():
    """SETTINGS takes what the table shows; what is unknown, cannot be, or is given otherwise beside it is named."""
    s = presets.choose(Training, "demo", {"beta": 0.2, "lora_layers": ["q_proj"], "seed": 2}, SEED=2)
    assert (s.beta, s.lora_layers, s.seed, s.max_pairs) == (0.2, ("q_proj",), 2, 2000)
    for name in ("bets", "preset"):
        with pytest.raises(ValueError, match=f"^SETTINGS: {name} is no setting here. There are base_model, dataset"):
            presets.choose(Training, "demo", {name: 1})
    with pytest.raises(ValueError, match="^BETA = 0: .*greater than 0"):
        presets.choose(Training, "demo", {"beta": 0})
    with pytest.raises(ValueError, match="^BETA = inf: .*finite number"):
        presets.choose(Training, "demo", {"beta": math.inf})
    with pytest.raises(ValueError, match="^LORA_LAYERS = 'q_proj': Input should be 'all-linear' or: .*valid tuple"):
        presets.choose(Training, "demo", {"lora_layers": "q_proj"})
    with pytest.raises(ValueError, match="^LORA_LAYERS = .*at least 1 item"):
        presets.choose(Training, "demo", {"lora_layers": []})
    with pytest.raises(ValueError, match="^SEED = 2, and in SETTINGS it is 1: give it once, as the parameter SEED"):
        presets.choose(Training, "demo", {"seed": 1}, SEED=2)


def test_paper_preset_is_the_published_one():
    """Its values are those of the paper's record."""
    published = load(ROOT / "results" / "published" / "paper.json")
    s, training = presets.choose(Training, "paper"), published["training"]
    for stage in ("SFT", "DPO"):
        assert getattr(s, f"{stage.lower()}_epochs") == training[stage]["epochs"]
        assert getattr(s, f"{stage.lower()}_learning_rate") == training[stage]["learning_rate"]
        assert s.batch_size == training[stage]["batch"]
    assert (s.beta, s.max_length) == (training["DPO"]["beta"], training["SFT"]["max_length"])
    assert f"r={s.lora_r} alpha={s.lora_alpha} dropout={s.lora_dropout}" in training["DPO"]["method"]
    assert s.lora_layers == ("q_proj", "v_proj")
    evaluation = presets.choose(Evaluation, "paper")
    assert evaluation.protocol == "paper"
    assert evaluation.max_new_tokens == published["evaluation"]["max_new_tokens"]


def test_protocol_paper_takes_the_studys_limit():
    """50 new tokens unless told otherwise."""
    assert presets.choose(Evaluation, "full", PROTOCOL="paper").max_new_tokens == 50
    assert presets.choose(Evaluation, "full", PROTOCOL="paper", MAX_NEW_TOKENS=20).max_new_tokens == 20
    assert presets.choose(Evaluation, "paper", PROTOCOL="default").max_new_tokens == 128


@pytest.mark.parametrize("name", ["huge", "", None, 5])
def test_unknown_preset(name):
    """The message lists the presets there are."""
    for choose in (presets.resolve, lambda name: presets.choose(Training, name)):
        with pytest.raises(ValueError, match=f"PRESET = {name!r} is unknown. Choose auto, demo, small, quick, full, p"):
            choose(name)


@pytest.mark.parametrize("name", ["quick", "full", "paper"])
def test_preset_that_needs_an_accelerator(name):
    """Without a GPU the message says so, and what to do in Colab and elsewhere."""
    with pytest.raises(RuntimeError, match=f"PRESET = '{name}' needs a CUDA accelerator.*runtime type.*demo or small"):
        presets.resolve(name)
    assert presets.resolve("small") == "small"


@pytest.mark.parametrize(("cuda", "taken"), [(False, "demo"), (True, "quick")])
def test_auto_takes_what_can_run_and_says_so(monkeypatch, capsys, cuda, taken):
    """demo without an accelerator, else quick."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert presets.resolve("auto") == taken
    assert f"'auto' takes {taken}" in capsys.readouterr().out


@pytest.mark.parametrize("tool", [None, "/usr/bin/nvidia-smi"])
def test_auto_says_that_a_card_cannot_be_used(monkeypatch, capsys, tool):
    """An NVIDIA device with a driver too old for this torch: the demo runs, and says why."""
    monkeypatch.setattr(presets.shutil, "which", lambda name: tool)
    assert presets.resolve("auto") == "demo"
    assert ("has an NVIDIA device, but torch" in capsys.readouterr().out) == bool(tool)
