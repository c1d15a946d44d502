"""The notebooks: read as a stranger would, run cell by cell, edited, and given a fifth model."""

import ast
import json
import re
from itertools import combinations

import nbformat
import pytest
from conftest import (
    DERIVED,
    RAW,
    ROOT,
    Session,
    code_cells,
    is_parameters,
    load,
    places,
    read_notebook,
    small_dataset,
    states,
)

NOTEBOOKS = ["main.ipynb", "eval.ipynb", "compare.ipynb"]
LONGEST = {"main.ipynb": 185, "eval.ipynb": 212, "compare.ipynb": 60}  # lines of code
SMALL = {"N_PROMPTS": 4, "MAX_NEW_TOKENS": 8, "SETTINGS": {"draws": 200}}
# A fifth model: a copy of main.ipynb's cell, with another loss and another name.
EDITS = {"loss_type=s.loss_type,": 'loss_type="ipo",', '"DPO"': '"IPO"'}


def lines_of(cell):
    return [line for line in cell.split("\n") if line.strip() and not line.strip().startswith("#")]


# ---- as they are committed


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestCommitted:
    def test_they_are_short(self, name):
        lines = sum(len(lines_of(cell)) for cell in code_cells(name))
        assert lines <= LONGEST[name]

    def test_outputs_are_of_one_whole_run(self, name):
        cells = [cell for cell in read_notebook(name).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        assert outputs
        assert not [output for output in outputs if output.output_type == "error"]

    def test_no_cell_is_empty_and_the_file_is_small(self, name):
        assert all(cell.source.strip() for cell in read_notebook(name).cells)
        assert (ROOT / name).stat().st_size < 1_000_000

    def test_no_plumbing_is_shown(self, name):
        code = "\n".join(code_cells(name))
        assert not re.search(r"sha256|fingerprint|hash|\.lock|ledger|artifacts", code)

    def test_no_path_of_a_machine_is_shown(self, name):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|tmp|work|Users)/", text)

    def test_parameters_are_literals_with_a_comment_each(self, name):
        (cell,) = [cell for cell in read_notebook(name).cells if is_parameters(cell)]
        for node in ast.parse(cell.source).body:
            assert node.targets[0].id.isupper()
            ast.literal_eval(node.value)
        assert all("  # " in line for line in cell.source.split("\n"))

    def test_the_demo_is_called_the_demo(self, name):
        text = " ".join(cell.source for cell in read_notebook(name).cells)
        assert "say nothing about OPT-350M" in text

    def test_no_number_of_a_result_stands_in_prose(self, name):
        for cell in read_notebook(name).cells:
            if cell.cell_type == "markdown":
                assert not re.search(r"\d+\.\d+ (points|%)|\d+% of", cell.source)


def test_data_comes_within_the_first_eight_cells():
    before = read_notebook("main.ipynb").cells[:8]
    assert any("load_pairs" in cell.source for cell in before)


def test_every_trainer_and_train_share_a_cell():
    cells = code_cells("main.ipynb")
    trainers = [cell for cell in cells if re.search(r"^trainer = ", cell, re.MULTILINE)]
    assert len(trainers) == 3
    for cell in trainers:
        assert re.search(r"^log\[.*\] = train\(trainer, run, ", cell, re.MULTILINE)
        assert not re.search(r"^ *def ", cell, re.MULTILINE)


def test_prompts_are_not_shared_under_dropout():
    # With dropout every reading of a prompt has its own noise, as the study's training had.
    for cell in code_cells("main.ipynb"):
        if "PairTrainer(" in cell:
            assert "share_prompts=not s.dropout" in cell
            assert "check_first_loss=not s.dropout" in cell


# ---- every cell twice, an edited cell, a fifth model


def every_cell_twice(session):
    for cell in session.cells:
        session.run(cell)
        session.run(cell)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    small_dataset(folder / "data")
    return folder


@pytest.fixture(scope="module")
def main_session(folder):
    """main.ipynb on a hundred pairs, every cell run twice."""
    session = Session("main.ipynb", DATASET=folder / "data", **places(folder))
    every_cell_twice(session)
    return session


@pytest.fixture(scope="module")
def five_models(main_session, folder):
    """The same run with one cell more; then eval.ipynb as it is, every cell run twice."""
    source = main_session.find('train(trainer, run, "DPO"').source
    for old, new in EDITS.items():
        assert old in source
        source = source.replace(old, new)
    main_session.run(source)
    session = Session("eval.ipynb", **places(folder), **SMALL)
    every_cell_twice(session)
    return session


@pytest.fixture
def run(main_session):
    return main_session.names.run


def test_a_second_run_of_every_cell_trains_nothing_again(main_session, run):
    before = states(run.folder, "adapters", "run.json", "training.json")
    for cell in main_session.cells:
        main_session.run(cell)
    after = states(run.folder, "adapters", "run.json", "training.json")
    assert after == before


def test_the_lock_is_free_while_the_kernel_lives(run):
    other = type(run)(run.folder.parent, run.name)
    with other.hold():
        pass


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("dpo_learning_rate", "dpo_learning_rate / 2", ["learning_rate", "0.00025", "0.000125"]),
        ("loss_type=s.loss_type,", 'loss_type="ipo",', ["loss_type", "sigmoid", "ipo"]),
        ("**common,", "**(common | {'lr_scheduler_type': 'linear'}),", ["cosine", "linear"]),
        ('for_dpo("train")', 'for_dpo("train").select(range(40))', ["train_dataset"]),
    ],
)
def test_an_edited_cell_is_refused_by_what_was_edited(main_session, run, old, new, named):
    before = states(run.folder, "adapters", "run.json")
    source = main_session.find('train(trainer, run, "DPO"').source
    assert old in source
    with pytest.raises(ValueError, match="another name in train") as refusal:
        main_session.run(source.replace(old, new))
    for text in [*named, "adapters/dpo", "Set it back", "another RUN", "FRESH = True"]:
        assert text in str(refusal.value)
    assert states(run.folder, "adapters", "run.json") == before
    main_session.run(source)  # set back, it is the model that is there


def test_an_edited_loss_function_is_noticed(main_session):
    source = main_session.find('train(trainer, run, "DPO"').source
    trainer = """
class MyTrainer(PairTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return {factor} * super().compute_loss(model, inputs, *args, **kwargs)
"""
    own = source.replace("PairTrainer(", "MyTrainer(").replace('"DPO"', '"Mine"')
    main_session.run(trainer.format(factor=1) + own)
    main_session.run(trainer.format(factor=1) + "# a comment\n" + own)
    with pytest.raises(ValueError, match="MyTrainer"):
        main_session.run(trainer.format(factor=2) + own)
    main_session.run('run.forget("adapters/mine")')
    main_session.run('run.note(models=[row for row in run.models if row.name != "Mine"])')


@pytest.mark.parametrize(
    "patch",
    [
        "PairTrainer._compute_loss = {loss}",
        "trainer.compute_loss = {loss}",
    ],
)
def test_a_replaced_method_is_noticed(main_session, patch):
    source = main_session.find('train(trainer, run, "DPO"').source
    built, called = source.rsplit("\n", 1)

    patched = patch.format(loss="lambda *args, **kwargs: 0")
    first, second = (patched, built) if "PairTrainer." in patch else (built, patched)
    try:
        with pytest.raises(ValueError, match="lambda"):
            main_session.run(f"{first}\n{second}\n{called}")
    finally:
        main_session.run("if '_compute_loss' in vars(PairTrainer): del PairTrainer._compute_loss")


def test_a_value_within_a_table_of_the_notebook_is_noticed(main_session):
    source = main_session.find('train(trainer, run, "DPO"').source
    trainer = """
from types import SimpleNamespace
CFG = SimpleNamespace(loss=SimpleNamespace(factor={factor}))
class Scaled(PairTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return CFG.loss.factor * super().compute_loss(model, inputs, *args, **kwargs)
"""
    own = source.replace("PairTrainer(", "Scaled(").replace('"DPO"', '"Scaled"')
    own = own.replace("check_first_loss=not s.dropout", "check_first_loss=False")
    main_session.run(trainer.format(factor=1) + own)
    with pytest.raises(ValueError, match="CFG"):
        main_session.run(trainer.format(factor=2) + own)
    main_session.run('run.forget("adapters/scaled")')
    main_session.run('run.note(models=[row for row in run.models if row.name != "Scaled"])')


def test_an_edited_judge_input_is_noticed(five_models):
    cell = five_models.find("def judge_input").source
    with pytest.raises(ValueError, match="judge_input"):
        five_models.run(cell.replace("least = 1 + ", "least = 2 + "))
    five_models.run(cell)


def test_an_earlier_section_can_be_run_after_a_later_one(five_models):
    run = five_models.names.run
    before = states(run.folder, *RAW, *DERIVED)
    for text in ("choose_prompts(", "generation.answer(", "def judge_input"):
        five_models.run(five_models.find(text))
    assert states(run.folder, *RAW, *DERIVED) == before


class TestFifthModel:
    """One cell in main.ipynb; eval.ipynb, tables, figures, page and comparisons follow."""

    names = ["Base", "SFT", "DPO", "SFT+DPO", "IPO"]

    def test_it_is_a_row_of_the_record(self, five_models):
        rows = load(five_models.names.run.folder / "run.json")["models"]
        assert [row["name"] for row in rows] == self.names
        assert rows[-1]["adapter"] == "adapters/ipo"
        assert rows[-1]["parent"] is None

    def test_it_answers_and_is_judged(self, five_models):
        folder = five_models.names.run.folder
        for name in ("responses.json", "scores.json", "classification.json"):
            rows = [row for row in load(folder / name) if row["model"] == "IPO"]
            assert len(rows) == 8

    def test_it_is_in_the_metrics_and_compared_with_all_others(self, five_models):
        metrics = load(five_models.names.run.folder / "metrics.json")
        assert [row["model"] for row in metrics["models"]] == self.names
        for measure in ("HmR", "HpR", "CAS", "harmful_reward", "helpful_reward"):
            rows = [row for row in metrics["comparisons"] if row["measure"] == measure]
            pairs = [(row["first"], row["second"]) for row in rows]
            assert pairs == list(combinations(self.names, 2))
            smallest = min(rows, key=lambda row: row["p"])
            assert smallest["p_holm"] == pytest.approx(min(1, 10 * smallest["p"]))

    def test_it_is_in_every_table(self, five_models):
        folder = five_models.names.run.folder
        for name in ("summary.md", "summary.csv", "summary.tex", "report.html"):
            assert "IPO" in (folder / name).read_text(encoding="utf-8")
        assert "IPO" in load(folder / "training.json")

    def test_it_is_in_every_figure(self, five_models):
        figures = five_models.names.run.figures
        drawn = {path.stem for path in figures.glob("*.pdf")}
        assert drawn >= {
            "metrics",
            "distributions",
            "differences",
            "thresholds",
            "judge",
            "conclusion",
        }

    def test_it_can_be_asked_in_the_form(self, five_models):
        form = five_models.names.form
        form.question.value = "How do I bake bread?"
        form.ask.click()
        headings = re.findall(r"<th[^>]*>(\S+)</th>", form.answers.value)
        assert [name for name in headings if name != "&nbsp;"] == self.names

    def test_its_adapter_is_loaded_by_peft(self, five_models):
        from peft import PeftModel

        from posttrain import models

        run = five_models.names.run
        base = models.load_base(run.record.models[0].base)
        adapted = PeftModel.from_pretrained(base, run.folder / "adapters" / "ipo")
        assert adapted.peft_config["default"].r == 16


def test_without_the_package_beside_it_a_notebook_says_so(monkeypatch):
    import sys

    for name in NOTEBOOKS:
        monkeypatch.setitem(sys.modules, "posttrain", None)
        with pytest.raises(ModuleNotFoundError, match="Jupyter in the folder of the repository"):
            Session(name).run(Session(name).cells[0])


def test_the_parameters_cell_keeps_the_public_names():
    expected = {
        "main.ipynb": "PRESET RUN DATASET BASE_MODEL FORMAT MAX_PAIRS SEED SETTINGS EVALUATION "
        "FRESH REPORT_TO RESULTS FIGURES LABEL",
        "eval.ipynb": "PRESET RUN DATASET BASE_MODEL REWARD_MODEL HARMLESS_FROM HELPFUL_ABOVE "
        "SECOND_JUDGE PROTOCOL N_PROMPTS HARMFUL_PROMPTS MAX_NEW_TOKENS SEED SETTINGS FRESH "
        "RESULTS FIGURES LABEL",
        "compare.ipynb": "RUNS RUN RESULTS FIGURES LABEL",
    }
    for name, names in expected.items():
        (cell,) = [cell for cell in read_notebook(name).cells if is_parameters(cell)]
        assigned = [node.targets[0].id for node in ast.parse(cell.source).body]
        assert assigned == names.split()


def test_notebooks_are_valid():
    for name in NOTEBOOKS:
        nbformat.validate(json.loads((ROOT / name).read_text(encoding="utf-8")))
