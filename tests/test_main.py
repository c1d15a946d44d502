import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext

import nbformat
import pytest
from conftest import HUB, ROOT, Session, load, row, write_dataset
from five_models import write_run

from posttrain import __main__ as command_line
from posttrain import notebooks, planning
from posttrain.__main__ import execute, main, prepare
from posttrain.files import write
from posttrain.parameters import Parameters, read_parameters
from posttrain.preparation import choose_settings
from posttrain.settings import Training, choose

# ---- what is refused before anything is trained


@pytest.fixture
def executed(monkeypatch):
    """The notebooks that a command would execute, as (name, folder, parameters)."""
    calls = []

    def note(notebook, folder, parameters):
        calls.append((notebook, folder, parameters))
        write(folder / "summary.md", f"The table of {folder.name}.\n")

    monkeypatch.setattr(command_line, "execute", note)
    return calls


def copy_judge(folder, **config):
    """A copy of the judge with another config; its weights are not read."""
    folder.mkdir()
    for path in (HUB / "reward-model").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    write(folder / "config.json", load(HUB / "reward-model" / "config.json") | config)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["N_PROMPTS=5000"], "N_PROMPTS = 5000, but the test split of harmless-base in demo/hub"),
        (["N_PROMPTS=0"], "N_PROMPTS = 0: Input should be greater than or equal to 1"),
        (["MAX_NEW_TOKENS=1016"], "MAX_NEW_TOKENS leaves 0 tokens for a prompt"),
        (["REWARD_MODEL=demo/hub/reward-modl"], "REWARD_MODEL = 'demo/hub/reward-modl' cannot be"),
        (["SECOND_JUDGE=demo/hub/reward-modl"], "SECOND_JUDGE = 'demo/hub/reward-modl' cannot be"),
        (["SECOND_JUDGE=demo/hub/reward-model"], "is the judge that REWARD_MODEL = 'demo/hub/rewa"),
        (["SECOND_JUDGE=demo/../demo/hub/reward-model"], "the judge that REWARD_MODEL = 'demo/hub"),
        (["SECOND_JUDGE=demo/hub/opt"], "SECOND_JUDGE: demo/hub/opt has 2 labels"),
        (["BASE_MODEL=demo/hub/hh-rlhf"], "BASE_MODEL = 'demo/hub/hh-rlhf' is not a model"),
        (["DATASET=nowhere"], "DATASET = 'nowhere' cannot be loaded"),
        (["REPORT_TO=mlflow"], "REPORT_TO = 'mlflow': Input should be 'none', 'tensorboard'"),
        (["SETTINGS={'bets': 1, 'draw': 2}"], "SETTINGS: neither notebook has a setting bets, d"),
        (["SETTINGS={'preset': 'full'}"], "SETTINGS: neither notebook has a setting preset"),
        (["SETTINGS={'beta': -1}"], "BETA = -1: Input should be greater than 0"),
        (["SETTINGS={'draws': 5}"], "DRAWS = 5: Input should be greater than or equal to 100"),
        (["SETTINGS={'n_prompts': 5}", "N_PROMPTS=6"], "N_PROMPTS = 6, but SETTINGS has n_prompts"),
        (["SETTINGS={'n_prompts': 5000}"], "N_PROMPTS = 5000, but the test split of harmless-base"),
        (["N_PROMPTS=290"], "has only 153 usable harmful prompts. Ask for at most 153, or for"),
        (["N_PROMPTS=295", "HARMFUL_PROMPTS=all"], "has only 294 usable harmful prompts."),
        (["HARMFUL_PROMPTS=some"], "HARMFUL_PROMPTS = 'some': Input should be 'keywords' or 'all'"),
        (["PROTOCOL=paper", "HARMFUL_PROMPTS=all"], "HARMFUL_PROMPTS = 'all', but PROTOCOL = 'pap"),
        (["SETTINGS={'stop_at_turn': 1}"], "STOP_AT_TURN = 1: Input should be a valid boolean"),
        (
            ["SETTINGS={'keyword_rule': 'anywhere'}", "HARMFUL_PROMPTS=all"],
            "SETTINGS = {'keyword_rule': 'anywhere'} chooses harmful prompts by their keywords",
        ),
        (
            ["PROTOCOL=paper", "SETTINGS={'prompt_tail': 'assistant'}"],
            "SETTINGS = {'prompt_tail': 'assistant'}, but PROTOCOL = 'paper' asks as the study",
        ),
        (["HARMLESS_FROM=nan"], "HARMLESS_FROM = nan: Input should be a finite number"),
        (["HARMLESS_FROM=low"], "HARMLESS_FROM = 'low': Input should be a valid number"),
        (["PROTOCOL=papers"], "PROTOCOL = 'papers': Input should be 'default' or 'paper'"),
        (["SEED=-1"], "SEED = -1: Input should be greater than or equal to 0"),
        (["RUN=.."], "RUN = '..' must be the plain name of a folder"),
        (["RUN=a/b"], "RUN = 'a/b' must be the plain name of a folder"),
        ([f"RUN={'ü' * 101}"], "is too long for the name of a folder. Choose a name of at most"),
        (["SEED=1", "SEED=2"], "SEED has two values, 1 and 2. Give it once."),
        (["PRESET=full"], "PRESET = 'full' needs a CUDA accelerator and none is visible"),
        (["PRESET=fully"], "PRESET = 'fully' is unknown. Choose auto, demo, small, quick, full"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_run_is_refused_before_anything_is_trained(tmp_path, executed, arguments, message):
    if not arguments[0].startswith("PRESET="):
        arguments = ["PRESET=demo", *arguments]
    with pytest.raises(SystemExit) as refusal:
        main(["run", f"RESULTS={tmp_path / 'results'}", *arguments])
    assert message in str(refusal.value.code)
    assert executed == []
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_tracker_that_is_not_installed_is_refused(tmp_path, executed, monkeypatch):
    monkeypatch.setattr("posttrain.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="REPORT_TO = 'wandb': .*not installed. Install it with"):
        main(["run", "PRESET=demo", f"RESULTS={tmp_path}", "REPORT_TO=wandb"])
    assert executed == []


def test_judge_with_two_labels_is_refused_where_it_would_still_be_asked(tmp_path, executed):
    labels = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    judge = copy_judge(tmp_path / "judge", **labels)
    results = tmp_path / "results"
    arguments = ["run", "PRESET=demo", f"RESULTS={results}", f"REWARD_MODEL={judge}"]
    with pytest.raises(SystemExit, match="REWARD_MODEL: .*2 labels"):
        main(arguments)
    write(results / "demo" / "scores.json", [])
    main(arguments)  # the rewards are there: no judge is needed
    assert [name for name, _, _ in executed] == ["main.ipynb", "eval.ipynb"]
    with pytest.raises(SystemExit, match="REWARD_MODEL: .*2 labels"):
        main([*arguments, "FRESH=True"])  # which would move them aside
    assert len(executed) == 2


@pytest.mark.parametrize("name", ["example", "published", "real-model"])
@pytest.mark.parametrize(
    "command", ["run", "seeds", "sweep", "compare", "import", "reask", "rejudge"]
)
def test_runs_of_the_repository_are_not_written_into(executed, command, name):
    given = {"seeds": ["SEEDS=1 2"], "compare": ["RUNS=a b"], "import": ["FROM=results/published"]}
    given |= {"sweep": ["SETTING=beta", "VALUES=0.1 1"], "reask": ["FROM=demo"]}
    with pytest.raises(SystemExit, match=f"RUN = '{name}' is a run of the repository"):
        main([command, "PRESET=demo", f"RUN={name}", *given.get(command, [])])
    assert executed == []


def test_their_names_may_be_taken_in_another_folder(tmp_path, executed):
    main(["run", "PRESET=demo", "RUN=example", f"RESULTS={tmp_path}"])
    assert {folder for _, folder, _ in executed} == {tmp_path / "example"}


def test_fresh_is_refused_where_the_folder_is_no_run(tmp_path, executed):
    write(tmp_path / "docs" / "thesis.md", "mine")
    with pytest.raises(SystemExit, match="FRESH would move .*docs aside, which is not the folder"):
        main(["run", "PRESET=demo", f"RESULTS={tmp_path}", "RUN=docs", "FRESH=True"])
    assert executed == []


def test_home_is_found_behind_a_tilde(tmp_path, executed, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["run", "PRESET=demo", "RESULTS=~/results", "FIGURES=~/figures"])
    (_, folder, parameters), _ = executed
    assert folder == tmp_path / "results" / "demo"
    assert parameters["FIGURES"] == str(tmp_path / "figures")


def test_what_a_preset_asks_for_beyond_the_data_is_no_refusal(tmp_path):
    rows = [row("How do I kill weeds?"), row("Why?", "Because.", "No.")]
    dataset = write_dataset(tmp_path / "data", [row()], rows)
    given = ["PRESET=demo", f"RESULTS={tmp_path}", f"DATASET={dataset}"]
    assert prepare(read_parameters(given)).RUN == "demo"
    prepare(read_parameters([*given, "N_PROMPTS=all"]))
    prepare(read_parameters([*given, "N_PROMPTS=2", "HARMFUL_PROMPTS=all"]))
    for asked in ("N_PROMPTS=2", "SETTINGS={'n_prompts': 2}"):
        with pytest.raises(ValueError, match="N_PROMPTS = 2, but .* only 1 usable harmful prompts"):
            prepare(read_parameters([*given, asked]))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["N_PROMPTS=60", "HARMFUL_PROMPTS=all"],
        ["SETTINGS={'n_prompts': 60, 'harmful_prompts': 'all', 'beta': 0.2, 'draws': 100}"],
        # With this rule the demo has more than 200 harmful prompts, and 153 without it.
        ["N_PROMPTS=200", "SETTINGS={'keyword_rule': 'anywhere'}"],
        ["PROTOCOL=paper", "MAX_NEW_TOKENS=1000", "MAX_PAIRS=40"],
        ["SETTINGS={'protocol': 'paper', 'max_new_tokens': 60}"],
    ],
    ids=" ".join,
)
def test_main_plans_with_the_prompts_that_eval_will_draw(tmp_path, executed, arguments):
    main(["run", "PRESET=demo", f"RESULTS={tmp_path}", *arguments])
    (_, _, of_main), (_, _, of_eval) = executed
    planned = planning.choose_evaluation(choose(Training, "demo"), of_main["EVALUATION"])
    asked = choose_settings("eval.ipynb", Parameters(**of_eval))
    for name in ("protocol", "n_prompts", "harmful_prompts", "keyword_rule", "max_new_tokens"):
        assert getattr(planned, name) == getattr(asked, name)
    is_asked = any("n_prompts" in argument.lower() for argument in arguments)
    assert ("n_prompts" in of_main["EVALUATION"]) == is_asked
    assert "beta" not in of_main["EVALUATION"]


@pytest.mark.parametrize(
    ("evaluation", "refusal"),
    [
        ({"n_prompts": 200, "keyword_rule": "anywhere"}, None),
        ({"n_prompts": 200}, "N_PROMPTS = 200, but .* only 153 usable harmful prompts"),
        ({"max_new_tokens": 1016}, "MAX_NEW_TOKENS leaves 0 tokens for a prompt"),
        ("n_prompts=200", "EVALUATION = 'n_prompts=200': Input should be a valid dictionary"),
    ],
)
def test_main_notebook_plans_with_what_it_is_given(tmp_path, evaluation, refusal, capsys):
    given = {"PRESET": "demo", "RESULTS": tmp_path, "FIGURES": tmp_path, "EVALUATION": evaluation}
    session = Session("main.ipynb", **given)
    (end,) = [i for i, cell in enumerate(session.cells) if "describe_plan" in cell.source]
    with pytest.raises(ValueError, match=refusal) if refusal else nullcontext():
        for cell in session.cells[: end + 1]:
            if "training_figures.show" not in cell.source:
                session.run(cell)
    asks_200 = "eval.ipynb asks 200 harmful and 200 helpful prompts" in capsys.readouterr().out
    assert asks_200 == (refusal is None)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"bets": 1}, "EVALUATION: eval.ipynb has no setting bets. Its settings are dataset, rew"),
        ({"preset": "full"}, "EVALUATION: eval.ipynb has no setting preset"),
        ({"n_prompts": 0}, "N_PROMPTS = 0: Input should be greater than or equal to 1"),
    ],
)
def test_plan_with_what_eval_would_refuse_is_refused(evaluation, message):
    with pytest.raises(ValueError, match=message):
        planning.choose_evaluation(choose(Training, "demo"), evaluation)


@pytest.mark.parametrize("document", ["README.md", "Makefile", "docs/settings.md"])
def test_examples_ask_for_no_more_prompts_than_the_real_data_has(document):
    """HH-RLHF has 159 harmful prompts with a keyword (tests/test_data.py)."""
    text = (ROOT / document).read_text(encoding="utf-8")
    asked = [int(number) for number in re.findall(r"N_PROMPTS=(\d+)", text)]
    assert asked or document == "docs/settings.md"
    assert all(number <= 159 for number in asked)


def test_auto_is_the_demo_without_an_accelerator_and_says_so(tmp_path, capsys):
    prepared = prepare(read_parameters([f"RESULTS={tmp_path}"]))
    assert (prepared.PRESET, prepared.RUN) == ("demo", "demo")
    assert "PRESET = 'auto' takes demo: torch sees no accelerator." in capsys.readouterr().out


# ---- commands


def test_run_trains_then_evaluates_and_prints_the_table(tmp_path, executed, capsys):
    given = ["MAX_PAIRS=40", "SEED=3", "SETTINGS={'beta': 0.2, 'draws': 100}", "RUN=my run"]
    main(["run", "PRESET=demo", f"RESULTS={tmp_path}", *given])
    (first, folder, parameters), second = executed
    assert (first, folder) == ("main.ipynb", tmp_path / "my run")
    assert parameters.pop("EVALUATION") == {}
    assert second == ("eval.ipynb", folder, parameters)
    assert parameters == {
        "PRESET": "demo",
        "RUN": "my run",
        "RESULTS": str(tmp_path),
        "MAX_PAIRS": 40,
        "SEED": 3,
        "SETTINGS": {"beta": 0.2, "draws": 100},
    }
    printed = capsys.readouterr().out
    assert "The table of my run." in printed
    assert f"{folder}/report.html" in printed


def test_seeds_vary_the_training_alone(tmp_path, executed):
    main(["seeds", "SEEDS=3 14", "PRESET=demo", f"RESULTS={tmp_path}", "N_PROMPTS=4"])
    steps = []
    for name, folder, given in executed:
        assert "SEED" not in given  # it would choose other prompts too
        steps.append((name, folder.name, given["SETTINGS"].get("seed")))
    assert steps == [
        ("main.ipynb", "demo-seed3", 3),
        ("eval.ipynb", "demo-seed3", None),
        ("main.ipynb", "demo-seed14", 14),
        ("eval.ipynb", "demo-seed14", None),
        ("compare.ipynb", "demo-seeds", None),
    ]
    assert executed[-1][2]["RUNS"] == "demo-seed3 demo-seed14"
    for _, folder, given in executed:
        assert given["RUN"] == folder.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SEEDS: give two or more seeds, each once"),
        (["SEEDS=1"], "SEEDS: give two or more seeds, each once"),
        (["SEEDS=1 1"], "SEEDS: give two or more seeds, each once"),
        (["SEEDS=a b"], "SEEDS: give two or more seeds, each once"),
        (["SEEDS=1 ²"], "SEEDS: give two or more seeds, each once"),
        (["SEEDS=1 2", "SETTINGS={'seed': 3}"], "from SEEDS. Leave seed out of SETTINGS"),
        (["SEEDS=1 2", "SEED=3"], "SEED: this command takes the training seeds from SEEDS"),
        (["SEEDS=1 2", "N_PROMPTS=5000"], "N_PROMPTS = 5000, but the test split"),
        (["SEEDS=1 2", "SETTING=beta"], "SETTING and VALUES: use them with make sweep"),
    ],
)
def test_seeds_that_are_none_are_refused(tmp_path, executed, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["seeds", "PRESET=demo", f"RESULTS={tmp_path}", *arguments])
    assert executed == []


# ---- one setting varied


def sweep(results, setting, values, *arguments):
    """Call make sweep for the demo."""
    given = [f"SETTING={setting}", f"VALUES={values}", f"RESULTS={results}", *arguments]
    main(["sweep", "PRESET=demo", *given])


def test_sweep_varies_one_setting_of_the_training(tmp_path, executed):
    """The evaluation of every run is the same, and the runs are compared at the end."""
    sweep(tmp_path, "beta", "0.03 1", "SEED=5", "SETTINGS={'lora_r': 4, 'draws': 100}")
    varied = [(name, folder.name, given["SETTINGS"]) for name, folder, given in executed]
    common = {"lora_r": 4, "draws": 100}
    assert varied == [
        ("main.ipynb", "demo-beta0.03", common | {"beta": 0.03}),
        ("eval.ipynb", "demo-beta0.03", common),
        ("main.ipynb", "demo-beta1", common | {"beta": 1.0}),
        ("eval.ipynb", "demo-beta1", common),
        ("compare.ipynb", "demo-beta", common),
    ]
    assert executed[-1][2]["RUNS"] == "demo-beta0.03 demo-beta1"
    for _, folder, given in executed:
        assert (given["RUN"], given["SEED"], given["PRESET"]) == (folder.name, 5, "demo")


def test_sweep_of_the_seed_is_make_seeds(tmp_path, executed):
    main(["seeds", "SEEDS=3 14", "PRESET=demo", f"RESULTS={tmp_path}"])
    of_seeds = list(executed)
    executed.clear()
    sweep(tmp_path, "seed", "3 14")
    for (name, folder, given), other in zip(of_seeds, executed, strict=True):
        assert (name, folder) == other[:2]
        assert given == other[2]


@pytest.mark.parametrize(
    ("setting", "values", "read"),
    [
        ("sft_learning_rate", "2e-4 0.002", {"0.0002": 2e-4, "0.002": 2e-3}),
        ("sft_loss", "reply transcript", {"reply": "reply", "transcript": "transcript"}),
        ("max_pairs", "40 None", {"40": 40, "None": None}),
        (
            "lora_layers",
            "all-linear q_proj,v_proj q_proj",
            {
                "all-linear": "all-linear",
                "q_proj,v_proj": ["q_proj", "v_proj"],
                "q_proj": ["q_proj"],
            },
        ),
        ("batch_size", "8 16", {"8": 8, "16": 16}),  # the evaluation has one of its own
        (
            "loss_type",
            "sigmoid ipo sigmoid,sft",
            {"sigmoid": "sigmoid", "ipo": "ipo", "sigmoid,sft": ["sigmoid", "sft"]},
        ),
    ],
)
def test_values_are_read_as_the_settings_type_says(tmp_path, executed, setting, values, read):
    sweep(tmp_path, setting, values)
    trained = {}
    for name, folder, given in executed:
        if name == "main.ipynb":
            trained[folder.name.removeprefix(f"demo-{setting}")] = given["SETTINGS"][setting]
        else:
            assert given["SETTINGS"] == {}
    assert trained == read


def test_values_that_fit_only_with_other_settings_can_be_varied(tmp_path, executed):
    """Weights belong to losses that SETTINGS names, and exo_pair needs a label smoothing."""
    given = "SETTINGS={'loss_type': ['sigmoid', 'sft']}"
    sweep(tmp_path, "loss_weights", "1,1 1,0.5", given)
    sweep(tmp_path, "loss_type", "sigmoid exo_pair", "SETTINGS={'label_smoothing': 0.001}")
    names = [folder.name for name, folder, _ in executed if name == "main.ipynb"]
    first = ["demo-loss_weights1,1", "demo-loss_weights1,0.5"]
    assert names == [*first, "demo-loss_typesigmoid", "demo-loss_typeexo_pair"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SETTING: name a setting of the training and its values, such as SETTING=beta"),
        (["VALUES=1 2"], "The settings that can be varied are subsets, max_pairs, validation"),
        (["SETTING=bets", "VALUES=1 2"], "SETTING: there is no setting bets. The settings that"),
        (["SETTING=BETA", "VALUES=1 2"], "SETTING: there is no setting BETA. The settings that"),
        (["SETTING=report_to", "VALUES=none wandb"], "no result depends on the training's report"),
        (["SETTING=preset", "VALUES=demo full"], "a preset is a choice of many settings, and here"),
        (["SETTING=second_judge", "VALUES=a b"], "run eval.ipynb again with SECOND_JUDGE, which"),
        (["SETTING=judge_length", "VALUES=256 512"], "use make reask, .* answers and all of them"),
        (["SETTING=judge_tokens", "VALUES=512 1024"], "no result depends on the evaluation's jud"),
        (["SETTING=lora_layers", "VALUES=q_proj,v_proj v_proj,q_proj"], "v_proj,q_proj is given t"),
        (["SETTING=lora_layers", "VALUES=q_proj q_proj,"], "'q_proj,' has '' for the name of a la"),
        (["SETTING=lora_layers", "VALUES=q_proj ,"], "',' has '' for the name of a layer. Write a"),
        (["SETTING=lora_layers", "VALUES=['q'] v"], "has .* for the name of a layer. Write all"),
        (["SETTING=max_new_tokens", "VALUES=8 9"], "evaluation's max_new_tokens, .* make reask"),
        (["SETTING=protocol", "VALUES=default paper"], "protocol is a setting .* make reask"),
        (["SETTING=harmless_from", "VALUES=-3 -2"], "To change harmless_from, run eval.ipynb ag"),
        (["SETTING=base_model", "VALUES=a b"], "the prompts or Base itself would change"),
        (["SETTING=dataset", "VALUES=a b"], "the prompts or Base itself would change"),
        (["SETTING=beta"], "VALUES: give two or more values of beta with blanks between them"),
        (["SETTING=beta", "VALUES=0.1"], "VALUES: give two or more values of beta with blanks"),
        (["SETTING=beta", "VALUES=0.1 1 1e-1"], "VALUES: 0.1 is given twice. Give every value"),
        (["SETTING=beta", "VALUES=0.1 -1"], "VALUES: '-1' is no value of beta. Input should be g"),
        (["SETTING=beta", "VALUES=0.1 nan"], "VALUES: 'nan' is no value of beta. Input should be"),
        (["SETTING=beta", "VALUES=0.1, 1"], "VALUES: '0.1,' is no value of beta. Input should be"),
        (["SETTING=loss_type", "VALUES=ipo dpo"], "'dpo' is no value of loss_type. Input sho"),
        (["SETTING=loss_type", "VALUES=ipo ipo,"], "'ipo,' is no value of loss_type. Input s"),
        (["SETTING=loss_type", "VALUES=ipo exo_pair"], "label_smoothing = 0, but the loss exo_p"),
        (
            ["SETTING=label_smoothing", "VALUES=0.1 0.5", "SETTINGS={'loss_type': 'robust'}"],
            "label_smoothing = 0.5, but the loss robust",
        ),
        (["SETTING=loss_weights", "VALUES=1,2 1,3"], "does not have one weight for each loss in"),
        (["SETTING=lora_r", "VALUES=8 1.5"], "VALUES: '1.5' is no value of lora_r. Input should"),
        (["SETTING=sft_loss", "VALUES=reply all"], "VALUES: 'all' is no value of sft_loss. Input"),
        (["SETTING=beta", "VALUES=1 2", "SETTINGS={'beta': 3}"], "SETTINGS: beta has its values"),
        (["SETTING=max_pairs", "VALUES=40 50", "MAX_PAIRS=60"], "MAX_PAIRS: max_pairs has its v"),
        (["SETTING=seed", "VALUES=1 2", "SEED=3"], "SEED: seed has its values in VALUES"),
        (["SETTING=beta", "VALUES=1 2", "SEEDS=3 4"], "SEEDS: use it with make seeds"),
        (["SETTING=beta", "VALUES=1 2", "RUN=my run"], "RUN = 'my run' has a blank, but the runs"),
        (["SETTING=beta", "VALUES=1 2", "SETTINGS={'bets': 3}"], "neither notebook has a setting"),
        (["SETTING=beta", "VALUES=1 2", "N_PROMPTS=5000"], "N_PROMPTS = 5000, but the test split"),
        (["SETTING=max_length", "VALUES=512 4096"], "4096"),  # known before the first is trained
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sweep_is_refused_before_anything_is_trained(tmp_path, executed, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["sweep", "PRESET=demo", f"RESULTS={tmp_path / 'results'}", *arguments])
    assert executed == []
    assert list(tmp_path.iterdir()) == []


def test_compare_names_its_folder_after_the_first_run(tmp_path, executed):
    main(["compare", "RUNS=a b", f"RESULTS={tmp_path}"])
    main(["compare", "RUNS=a b", f"RESULTS={tmp_path}", "RUN=both"])
    assert [(name, folder.name) for name, folder, _ in executed] == [
        ("compare.ipynb", "a-compared"),
        ("compare.ipynb", "both"),
    ]
    with pytest.raises(SystemExit, match="RUNS: name the runs to compare"):
        main(["compare"])


def test_report_makes_the_page_and_says_where_it_lies(tmp_path, capsys):
    folder = write_run(tmp_path / "five")
    main(["report", "RUN=five", f"RESULTS={tmp_path}"])
    assert capsys.readouterr().out == f"Double-click {folder / 'report.html'} to open the page.\n"
    assert "SimPO, β 2.5" in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="RUN: name the run whose page is to be made"):
        main(["report"])
    with pytest.raises(SystemExit, match="nowhere"):
        main(["report", "RUN=nowhere", f"RESULTS={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["five"]


def test_letters_that_the_output_cannot_represent_end_no_command(tmp_path):
    write_run(tmp_path / "fünf − 5")
    given = ["report", "RUN=fünf − 5", f"RESULTS={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *given],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    shown = f"Double-click {tmp_path / 'fünf − 5' / 'report.html'} to open the page."
    assert done.stdout.strip() == shown.encode("ascii", errors="replace")


def test_unknown_command_names_those_that_there_are():
    message = "There is no command train. The commands are run, data, seeds"
    with pytest.raises(SystemExit, match=message):
        main(["train"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_says_what_there_is(arguments, capsys):
    main(arguments)
    printed = capsys.readouterr().out
    assert all(f"python -m posttrain {name}" in printed for name in command_line.COMMANDS)


@pytest.mark.parametrize("name", list(command_line.COMMANDS))
def test_help_of_a_command_does_nothing(name, executed, capsys):
    main([name, "--help"])
    assert len(capsys.readouterr().out) > 100
    assert executed == []


def test_makefile_and_command_line_offer_the_same():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = [line for line in makefile.splitlines() if line.startswith("run data")]
    assert line == f"{' '.join(command_line.COMMANDS)}: install"


def test_help_loads_nothing_heavy():
    """So help appears at once; the time that it takes is not tested."""
    code = (
        "import sys; from posttrain.__main__ import main; main(['--help']); print();"
        "print({'torch', 'matplotlib', 'IPython', 'transformers', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m posttrain run" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


# ---- executing a notebook


def write_notebook(path, *cells):
    """Write a notebook whose first cell holds the parameters."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)


def test_notebook_is_executed_and_one_that_stops_is_kept_beside_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # which it sets; so it is not left behind
    source = "print('the run is', repr(RUN), SETTINGS)\nassert SEED == 1, f'the seed is {SEED}'"
    write_notebook(tmp_path / "main.ipynb", "RUN = None\nSEED = 0\nSETTINGS = {}", source)
    folder = tmp_path / "results" / "my 'run' ü"
    settings = {"beta": 0.2, "draws": 100}  # draws is the evaluation's
    given = {"RUN": "my 'run' ü", "SEED": 1, "SETTINGS": settings, "PROTOCOL": "paper"}
    execute("main.ipynb", folder, given)
    assert capfd.readouterr().out == "the run is \"my 'run' ü\" {'beta': 0.2}\n"
    assert [path.name for path in folder.iterdir()] == ["main.ipynb"]
    before = (folder / "main.ipynb").read_bytes()

    message = r"main.ipynb stopped: AssertionError: the seed is 2\nThe notebook with .*stopped"
    with pytest.raises(RuntimeError, match=message):
        execute("main.ipynb", folder, given | {"SEED": 2})
    assert (folder / "main.ipynb").read_bytes() == before
    stopped = json.loads((folder / "main-stopped.ipynb").read_text(encoding="utf-8"))
    assert "the seed is 2" in json.dumps(stopped)
    execute("main.ipynb", folder, given)
    assert [path.name for path in folder.iterdir()] == ["main.ipynb"]


# ---- the whole demo run


def test_run_prints_its_progress_its_table_and_where_all_is(demo_run):
    printed = (demo_run.folder / "output.txt").read_text(encoding="utf-8")
    for name in ("SFT", "DPO", "SFT+DPO"):
        assert f"{name}: step 0 of 119, held-out pairs: loss " in printed
        assert f"{name} was trained in " in printed
    plan = printed.index("eval.ipynb asks 50 harmful and 50 helpful prompts")
    assert plan < printed.index("SFT: step 0 of 119")  # before anything is trained
    assert "153 prompts (harmful: all with a keyword)" in printed
    assert "harmless-base/test has 153 usable harmful prompts. Of these 50 were drawn" in printed
    assert (demo_run.run / "summary.md").read_text(encoding="utf-8") in printed
    assert re.search("records and both executed notebooks are in .*/results/demo[.]\n", printed)
    assert re.search("Double-click .*/results/demo/report.html to open a page", printed)


def test_executed_notebooks_lie_in_the_runs_folder(demo_run):
    for name in ("main.ipynb", "eval.ipynb"):
        notebook = load(demo_run.run / name)
        counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
        assert counts == list(range(1, len(counts) + 1))
    assert not list(demo_run.run.glob("*-stopped.ipynb"))
