"""Settings: what is refused and how, what the presets are, and which preset runs where."""

import math

import pytest
import torch
from conftest import HUB

from posttrain import losses, settings, trackers
from posttrain.settings import PRESETS, Evaluation, Training, choose

BOTH = pytest.mark.parametrize("kind", [Training, Evaluation])


def fields_of(chosen):
    """List the values of settings without the name of the preset."""
    return chosen.model_dump(exclude={"preset"})


# ---- values


@pytest.mark.parametrize(
    ("kind", "parameter", "value", "allowed"),
    [
        (Training, "MAX_PAIRS", 1, "greater than or equal to 2"),
        (Training, "MAX_PAIRS", 1.5, "valid integer"),
        (Training, "MAX_PAIRS", "50", "valid integer"),
        (Training, "SEED", -1, "greater than or equal to 0"),
        (Training, "SEED", 2**32, f"less than {2**32}"),
        (Training, "SEED", True, "valid integer"),
        (Training, "DATASET", 5, "valid string"),
        (Training, "DATASET", "", "at least 1 character"),
        (Training, "BASE_MODEL", b"a", "valid string"),
        (Training, "BASE_MODEL", "", "at least 1 character"),
        (Evaluation, "REWARD_MODEL", "", "at least 1 character"),
        (Training, "REPORT_TO", "mlflow", "'tensorboard', 'wandb' or 'trackio'"),
        (Evaluation, "N_PROMPTS", 0, "greater than or equal to 1"),
        (Evaluation, "N_PROMPTS", "every", "valid integer or: Input should be 'all'"),
        (Evaluation, "N_PROMPTS", "50", "valid integer or: Input should be 'all'"),
        (Evaluation, "MAX_NEW_TOKENS", 0, "greater than or equal to 1"),
        (Evaluation, "HARMLESS_FROM", "abc", "valid number"),
        (Evaluation, "HARMLESS_FROM", -math.inf, "finite number"),
        (Evaluation, "HELPFUL_ABOVE", math.nan, "finite number"),
        (Evaluation, "PROTOCOL", "papers", "'default' or 'paper'"),
        (Evaluation, "HARMFUL_PROMPTS", "some", "'keywords' or 'all'"),
        (Evaluation, "HARMFUL_PROMPTS", True, "'keywords' or 'all'"),
        (Evaluation, "SEED", 0.5, "valid integer"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_is_allowed(kind, parameter, value, allowed):
    with pytest.raises(ValueError, match=rf"^{parameter} = .*: .*{allowed}") as refusal:
        choose(kind, "demo", **{parameter: value})
    assert repr(value) in str(refusal.value)
    assert str(refusal.value).endswith("None takes the preset's value.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_pairs", 2), ("max_pairs", None), ("validation_pairs", 1), ("max_length", 16),
        ("dropout", 0), ("dropout", 0.99), ("lora_r", 1), ("checkpoint_share", 1), ("seed", 0),
        ("seed", 2**32 - 1), ("beta", 1e-9), ("lora_dropout", 0.0), ("batch_size", 1),
    ],
)  # fmt: skip
def test_a_training_takes_the_bounds_themselves(name, value):
    assert getattr(choose(Training, "demo", {name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("beta", 0, "greater than 0"), ("beta", math.inf, "finite number"),
        ("dropout", 1, "less than 1"), ("dropout", -0.1, "greater than or equal to 0"),
        ("lora_dropout", 1.0, "less than 1"), ("max_length", 15, "greater than or equal to 16"),
        ("validation_pairs", 0, "greater than or equal to 1"), ("lora_r", 0, "equal to 1"),
        ("sft_epochs", 1.5, "valid integer"), ("sft_learning_rate", 0, "greater than 0"),
        ("checkpoint_share", 0, "greater than 0"), ("checkpoint_share", 1.1, "equal to 1"),
        ("subsets", "helpful", "'base' or 'all'"), ("precision", "fp16", "'auto' or 'fp32'"),
        ("lora_layers", "q_proj", "'all-linear' or: .*valid tuple"),
        ("lora_layers", [], "at least 1 item"), ("lora_layers", [3], "valid string"),
        ("batch_size", "16", "valid integer"),
        ("label_smoothing", 1, "less than 1"), ("label_smoothing", -0.1, "greater than or equal"),
        ("loss_weights", [1, 0], "greater than 0"), ("loss_type", [], "at least 1 item"),
        ("loss_type", 3, "valid tuple"),
    ],
)  # fmt: skip
def test_any_other_setting_has_its_bounds_too(name, value, allowed):
    with pytest.raises(ValueError, match=f"^{name.upper()} = .*{allowed}"):
        choose(Training, "demo", {name: value})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("judge_length", 15, "equal to 16"), ("judge_tokens", 511, "equal to 512"),
        ("draws", 99, "equal to 100"), ("batch_size", 0, "equal to 1"),
    ],
)  # fmt: skip
def test_an_evaluations_settings_have_their_bounds_too(name, value, allowed):
    with pytest.raises(ValueError, match=f"^{name.upper()} = .*{allowed}"):
        choose(Evaluation, "demo", {name: value})


@pytest.mark.parametrize("value", ["dpo", ["sigmoid", "dpo"]])
def test_an_unknown_loss_is_refused_with_all_there_are(value):
    with pytest.raises(ValueError, match="^LOSS_TYPE = ") as refusal:
        choose(Training, "demo", {"loss_type": value})
    for name in losses.NAMES:
        assert str(refusal.value).count(f"'{name}'") == 1 + (name in value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weights": [1, 2]}, r"loss_weights = \[1.0, 2.0\] does not have one weight .* sigm"),
        ({"loss_type": ["ipo", "sft"], "loss_weights": [1]}, "weight for each .*, ipo, sft. Give"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing = 0.5, .* below 0.5"),
        ({"loss_type": ["sft", "robust"], "label_smoothing": 0.9}, "robust .* below 0.5"),
        ({"loss_type": "exo_pair"}, "label_smoothing = 0, .* exo_pair .* recommends 0.001"),
    ],
)
def test_weights_and_smoothing_that_do_not_fit_the_loss_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^SETTINGS: .*{message}"):
        choose(Training, "demo", changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "robust", "label_smoothing": 0.49},
        {"loss_type": "exo_pair", "label_smoothing": 0.001},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
        {"loss_type": ["ipo"]},
        {"loss_type": "aot", "label_smoothing": 0.9},
    ],
)
def test_losses_that_fit_are_taken(changes):
    chosen = choose(Training, "demo", changes).model_dump(mode="json")
    assert {name: chosen[name] for name in changes} == changes


def test_a_setting_that_is_no_parameter_is_left_out_to_take_the_presets_value():
    for value in (None, "x"):
        message = f"^BETA = {value!r}: .*valid number. Leave it out to take the preset's value.$"
        with pytest.raises(ValueError, match=message):
            choose(Training, "demo", {"beta": value}, SEED=1)


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    message = "^REPORT_TO = 'wandb': .*it is not installed. Install it with .* -m pip install wandb"
    with pytest.raises(ValueError, match=message):
        choose(Training, "demo", REPORT_TO="wandb")
    assert choose(Training, "demo", REPORT_TO="none").report_to == "none"
    monkeypatch.setattr(trackers, "require_tracker", lambda name: None)
    assert choose(Training, "demo", REPORT_TO="wandb").report_to == "wandb"


# ---- parameters, SETTINGS and the preset


def test_parameters_stand_above_the_preset(tmp_path):
    chosen = choose(Training, "demo", MAX_PAIRS=7, SEED=None, DATASET=tmp_path, BASE_MODEL="a/b")
    assert (chosen.max_pairs, chosen.seed) == (7, 0)
    assert (chosen.dataset, chosen.base_model) == (str(tmp_path), "a/b")
    assert choose(Evaluation, "demo", HARMLESS_FROM=-2).harmless_from == -2  # a whole number
    assert choose(Evaluation, "demo", N_PROMPTS="all").n_prompts == "all"
    assert choose(Evaluation, "demo", N_PROMPTS=7).n_prompts == 7


@BOTH
@pytest.mark.parametrize("preset", PRESETS)
def test_none_takes_the_presets_value_for_every_parameter(kind, preset):
    parameters = {name.upper(): None for name in kind.model_fields if name != "preset"}
    assert choose(kind, preset, **parameters) == choose(kind, preset)
    values = kind.PRESET_VALUES[preset]
    assert fields_of(choose(kind, preset)) == fields_of(choose(kind, "full")) | values


def test_zero_and_nothing_are_values_and_not_none():
    with pytest.raises(ValueError, match="^MAX_PAIRS = 0: "):
        choose(Training, "demo", MAX_PAIRS=0)
    assert choose(Training, "demo", {"seed": 5}, SEED=None).seed == 5
    assert choose(Evaluation, "demo", HARMLESS_FROM=0).harmless_from == 0


@BOTH
@pytest.mark.parametrize("changes", [[], "", 0, False, [("seed", 1)], "{'seed': 1}"])
def test_settings_that_are_no_dictionary_are_refused(kind, changes):
    with pytest.raises(ValueError, match="is not a dictionary. Write it as .*papermill as -y"):
        choose(kind, "demo", changes)
    assert choose(kind, "demo", None) == choose(kind, "demo", {})


def test_any_setting_can_be_set_in_settings():
    changes = {"beta": 0.2, "lora_layers": ["q_proj"], "seed": 2}
    chosen = choose(Training, "demo", changes, SEED=2)
    assert (chosen.beta, chosen.lora_layers, chosen.seed) == (0.2, ("q_proj",), 2)
    assert chosen.max_pairs == 2000
    assert changes == {"beta": 0.2, "lora_layers": ["q_proj"], "seed": 2}  # left as they were


@pytest.mark.parametrize("name", ["bets", "preset", "SEED", 5, "max_pairs "])
def test_an_unknown_setting_is_refused_with_those_there_are(name):
    message = f"^SETTINGS: this notebook has no setting {name}. Its settings are base_model, "
    with pytest.raises(ValueError, match=message):
        choose(Training, "demo", {name: 1})


def test_all_unknown_settings_are_named_at_once():
    with pytest.raises(ValueError, match="^SETTINGS: this notebook has no setting a, b"):
        choose(Evaluation, "demo", {"b": 1, "seed": 1, "a": 2})


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="^MAX_PAIR = 3: Extra inputs"):
        choose(Training, "demo", MAX_PAIR=3)


def test_a_value_that_is_given_twice_and_differs_is_refused():
    message = "^SEED = 2, but SETTINGS has seed = 1. Give it once, as the parameter SEED"
    with pytest.raises(ValueError, match=message):
        choose(Training, "demo", {"seed": 1}, SEED=2)


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        choose(Training, "demo").seed = 1


# ---- presets


@BOTH
def test_every_setting_has_a_reason_and_every_preset_its_values(kind):
    for name, field in kind.model_fields.items():
        assert len(field.description) > 3, name
    assert tuple(kind.PRESET_VALUES) == PRESETS
    for preset in PRESETS:
        assert choose(kind, preset).preset == preset


@BOTH
def test_settings_can_be_written_to_json_and_chosen_again(kind):
    values = choose(kind, "paper").model_dump(mode="json")
    assert choose(kind, values.pop("preset"), values) == choose(kind, "paper")


def test_the_demo_takes_the_stand_ins():
    demo = choose(Training, "demo")
    assert demo.base_model == str(HUB.relative_to(HUB.parents[1]) / "opt")
    assert choose(Evaluation, "demo").dataset == demo.dataset


def test_the_paper_preset_is_the_published_one():
    """The values are those of arXiv 2509.09055 and its repository."""
    paper = choose(Training, "paper")
    assert (paper.base_model, paper.dataset) == ("facebook/opt-350m", "Anthropic/hh-rlhf")
    assert (paper.sft_method, paper.sft_epochs, paper.dpo_epochs) == ("full", 2, 1)
    assert (paper.sft_loss, choose(Training, "full").sft_loss) == ("transcript", "reply")
    assert (paper.sft_learning_rate, paper.dpo_learning_rate) == (2e-5, 2e-5)
    assert (paper.batch_size, paper.beta, paper.max_length) == (8, 0.1, 512)
    assert (paper.lora_r, paper.lora_alpha, paper.lora_dropout) == (8, 16, 0.05)
    assert (paper.lora_layers, paper.dropout) == (("q_proj", "v_proj"), 0.1)
    evaluation = choose(Evaluation, "paper")
    assert (evaluation.protocol, evaluation.max_new_tokens) == ("paper", 50)
    assert (evaluation.harmless_from, evaluation.helpful_above) == (-3, -2)
    assert evaluation.n_prompts == 50
    assert (evaluation.harmful_prompts, evaluation.keyword_rule) == ("keywords", "anywhere")
    assert (evaluation.prompt_tail, evaluation.stop_at_turn) == ("human", False)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("demo", (50, "keywords")),
        ("small", (50, "keywords")),
        ("quick", (150, "keywords")),
        ("full", (500, "all")),
        ("paper", (50, "keywords")),
    ],
)
def test_every_preset_has_its_number_of_prompts(preset, expected):
    chosen = choose(Evaluation, preset, N_PROMPTS=None, HARMFUL_PROMPTS=None)
    assert (chosen.n_prompts, chosen.harmful_prompts) == expected


FAULTS = [
    ("prompt_tail", "human", "assistant"),
    ("stop_at_turn", False, True),
    ("keyword_rule", "anywhere", "word"),
]


@pytest.mark.parametrize("preset", ["demo", "small", "quick", "full"])
@pytest.mark.parametrize(("name", "fault", "sound"), FAULTS)
def test_every_fault_of_the_study_has_a_switch_of_its_own(preset, name, fault, sound):
    """With keywords chosen, switching a fault on changes this setting and nothing else."""
    usual = choose(Evaluation, preset, HARMFUL_PROMPTS="keywords")
    faulty = choose(Evaluation, preset, {name: fault}, HARMFUL_PROMPTS="keywords")
    assert getattr(usual, name) == sound
    assert faulty.model_dump() == usual.model_dump() | {name: fault}


@pytest.mark.parametrize("preset", ["full", "paper"])
@pytest.mark.parametrize(
    ("name", "fault", "sound"), [*FAULTS, ("harmful_prompts", "keywords", "all")]
)
def test_papers_protocol_has_all_faults_and_refuses_to_be_without_one(preset, name, fault, sound):
    assert getattr(choose(Evaluation, preset, PROTOCOL="paper"), name) == fault
    assert choose(Evaluation, preset, {name: fault}, PROTOCOL="paper").protocol == "paper"
    with pytest.raises(ValueError) as refusal:
        choose(Evaluation, preset, {name: sound}, PROTOCOL="paper")

    def written(value):
        is_parameter = name == "harmful_prompts"
        return f"{name.upper()} = {value!r}" if is_parameter else f"SETTINGS = { {name: value} }"

    assert str(refusal.value) == (
        f"{written(sound)}, but PROTOCOL = 'paper' asks as the study did, with {written(fault)}. "
        f"Leave {name} out, or choose PROTOCOL = 'default', in which each of the study's faults "
        "has its own setting."
    )


def test_rule_for_keywords_needs_prompts_chosen_by_keywords():
    message = "^SETTINGS = {'keyword_rule': 'anywhere'} chooses .*Add HARMFUL_PROMPTS = 'keywords'"
    for preset, parameters in (("full", {}), ("demo", {"HARMFUL_PROMPTS": "all"})):
        with pytest.raises(ValueError, match=message):
            choose(Evaluation, preset, {"keyword_rule": "anywhere"}, **parameters)
    assert choose(Evaluation, "demo", {"keyword_rule": "anywhere"}).keyword_rule == "anywhere"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("keyword_rule", "inside", "'word' or 'anywhere'"),
        ("prompt_tail", "none", "'assistant' or 'human'"),
        ("prompt_tail", None, "'assistant' or 'human'"),
        ("stop_at_turn", "False", "valid boolean"),
        ("stop_at_turn", 0, "valid boolean"),
    ],
)
def test_value_that_no_fault_has_is_named_with_what_is_allowed(name, value, allowed):
    with pytest.raises(ValueError, match=f"^{name.upper()} = {value!r}: .*{allowed}.*Leave it out"):
        choose(Evaluation, "demo", {name: value})


@pytest.mark.parametrize("preset", PRESETS)
def test_the_papers_protocol_brings_its_limit(preset):
    asked = choose(Evaluation, preset, PROTOCOL="paper")
    assert (asked.protocol, asked.max_new_tokens) == ("paper", 50)
    assert asked.dataset == choose(Evaluation, preset).dataset
    assert choose(Evaluation, preset, PROTOCOL="paper", MAX_NEW_TOKENS=20).max_new_tokens == 20
    assert choose(Evaluation, preset, {"protocol": "paper"}).max_new_tokens == 50


def test_the_default_protocol_brings_its_limit():
    asked = choose(Evaluation, "paper", PROTOCOL="default")
    assert (asked.protocol, asked.max_new_tokens, asked.preset) == ("default", 128, "paper")
    assert choose(Evaluation, "demo", PROTOCOL="default").max_new_tokens == 48


def test_default_protocol_after_the_papers_training_is_that_of_full():
    asked = choose(Evaluation, "paper", PROTOCOL="default")
    assert fields_of(asked) == fields_of(choose(Evaluation, "full"))


@pytest.mark.parametrize("preset", PRESETS)
def test_papers_protocol_brings_its_number_of_prompts(preset):
    asked = choose(Evaluation, preset, PROTOCOL="paper")
    assert (asked.n_prompts, asked.harmful_prompts) == (50, "keywords")
    assert choose(Evaluation, preset, PROTOCOL="paper", N_PROMPTS=20).n_prompts == 20


# ---- where a preset runs


@pytest.mark.parametrize("name", ["huge", "", None, 5, "Demo", ["demo"]])
def test_an_unknown_preset_is_refused_with_those_there_are(name):
    for chooser in (settings.resolve, settings.training, settings.evaluation):
        with pytest.raises(ValueError) as refusal:
            chooser(name)
        message = f"PRESET = {name!r} is unknown. Choose auto, demo, small, quick, full or paper."
        assert str(refusal.value) == message


@pytest.mark.parametrize("name", ["quick", "full", "paper"])
def test_a_training_that_needs_an_accelerator_says_so(monkeypatch, name):
    message = f"PRESET = '{name}' needs a CUDA accelerator.*runtime type.*'demo' or 'small'"
    with pytest.raises(RuntimeError, match=message):
        settings.training(name)
    assert settings.evaluation(name).preset == name
    show_card(monkeypatch)
    assert settings.training(name).preset == name


def show_card(monkeypatch, capability=(9, 0), kernels=("sm_80", "sm_90")):
    """Let torch see a GPU of a compute capability, with kernels for some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))


@pytest.mark.parametrize(
    ("capability", "kernels"),
    [
        ((8, 0), ["sm_75", "sm_80", "sm_90a"]),
        ((8, 9), ["sm_80"]),  # later cards of the same generation
        ((12, 0), ["sm_90", "compute_90"]),  # compiled when it is used
    ],
)
def test_a_card_with_kernels_can_train(monkeypatch, capability, kernels):
    show_card(monkeypatch, capability, kernels)
    assert settings.training("quick").preset == "quick"


@pytest.mark.parametrize(
    ("capability", "kernels"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_90"]),  # a V100 under CUDA 13
        ((6, 0), ["sm_75", "sm_80"]),  # a P100
        ((10, 0), ["sm_80", "sm_90a"]),
        ((8, 0), ["sm_86"]),
    ],
)
def test_a_card_without_kernels_is_refused_and_told_what_to_install(
    monkeypatch, capability, kernels
):
    show_card(monkeypatch, capability, kernels)
    with pytest.raises(RuntimeError, match="has no kernels for this GPU .a card.*whl/cu126"):
        settings.training("quick")


def test_auto_says_that_the_gpu_of_a_mac_is_not_used(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert settings.resolve("auto") == "demo"
    said = capsys.readouterr().out
    assert "the GPU of a Mac is not used yet, so everything is computed on its CPU" in said
    assert "no accelerator" not in said


def test_a_training_without_an_accelerator_runs_where_there_is_none():
    for name in ("demo", "small"):
        assert settings.training(name, {"beta": 0.2}, SEED=3).seed == 3


@pytest.mark.parametrize(("visible", "taken"), [(False, "demo"), (True, "quick")])
def test_auto_takes_what_can_run_and_says_so(monkeypatch, capsys, visible, taken):
    if visible:
        show_card(monkeypatch)
    assert settings.resolve("auto") == taken
    assert f"'auto' takes {taken}: torch sees" in capsys.readouterr().out
    assert settings.training("auto").preset == settings.evaluation("auto").preset == taken


@pytest.mark.parametrize("tool", [None, "/usr/bin/nvidia-smi"])
def test_auto_says_where_a_card_cannot_be_used(monkeypatch, capsys, tool):
    monkeypatch.setattr(settings.shutil, "which", lambda name: tool)
    monkeypatch.setattr(settings.Path, "exists", lambda path: False)
    assert settings.resolve("auto") == "demo"
    is_said = "NVIDIA device that torch cannot use" in capsys.readouterr().out
    assert is_said == (tool is not None)
