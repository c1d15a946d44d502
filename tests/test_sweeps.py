"""Settings of the training that bases or older runs do not all have in the same way."""

import json

import pytest
from conftest import load
from small_models import save_base
from test_compare import write_evaluated

from posttrain import __main__ as command_line
from posttrain import compare
from posttrain.__main__ import main
from posttrain.files import write
from posttrain.trade_off import measure_trade_off


@pytest.fixture
def executed(monkeypatch):
    """The names of the notebooks that a command would execute."""
    calls = []

    def note(notebook, folder, parameters):
        calls.append(notebook)
        write(folder / "summary.md", "")

    monkeypatch.setattr(command_line, "execute", note)
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "SETTINGS={'dropout': 0.1}"],
        ["sweep", "SETTING=dropout", "VALUES=0 0.1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_dropout_of_a_base_without_one_is_refused_before_the_training(
    tmp_path, executed, arguments
):
    base = save_base(tmp_path / "llama", "llama")
    given = ["PRESET=demo", f"BASE_MODEL={base}", f"RESULTS={tmp_path / 'results'}"]
    message = "dropout = 0.1, but this base .llama. has no dropout that could be set"
    with pytest.raises(SystemExit, match=message):
        main([*arguments, *given])
    assert executed == []
    main(["run", *given])  # without dropout it is taken
    assert executed == ["main.ipynb", "eval.ipynb"]


def test_dropout_of_a_base_that_has_some_is_taken_whatever_its_name_is(tmp_path, executed):
    base = save_base(tmp_path / "gpt2", "gpt2")
    rates = json.loads((base / "config.json").read_text(encoding="utf-8"))
    assert "dropout" not in rates
    given = ["PRESET=demo", f"BASE_MODEL={base}", f"RESULTS={tmp_path / 'results'}"]
    main(["run", "SETTINGS={'dropout': 0.2}", *given])
    assert executed == ["main.ipynb", "eval.ipynb"]


@pytest.mark.parametrize("varied", ["dropout", "beta"])
def test_runs_with_another_dropout_may_differ_in_every_rate_of_their_base(tmp_path, varied):
    """GPT-2 calls its rates attn_pdrop, embd_pdrop and resid_pdrop."""
    for name, rate in (("a", 0.1), ("b", 0.2)):

        def set_rates(model, inputs, rate=rate):
            inputs["model_config"] = {"attn_pdrop": rate, "resid_pdrop": rate, "layers": 2}

        write_evaluated(tmp_path, name, edit=set_rates, **{varied: rate})
    if varied == "dropout":
        runs = compare.load_runs(tmp_path, ["a", "b"])
        assert list(compare.differing(runs).index) == ["dropout"]
    else:
        with pytest.raises(ValueError, match="made with different inputs: attn_pdrop, resid_pdrop"):
            compare.load_runs(tmp_path, ["a", "b"])


def test_runs_with_another_loss_may_differ_in_the_passes_that_it_depends_on(tmp_path):
    for name, loss, passes in (("a", "sigmoid", {}), ("b", "aot", {"pairs_in_a_pass": 16})):

        def set_loss(model, inputs, loss=loss, passes=passes):
            inputs["arguments"] |= {"loss_type": [loss], **passes}

        write_evaluated(tmp_path, name, edit=set_loss, loss_type=loss)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    assert list(compare.differing(runs).index) == ["loss_type"]


def test_runs_in_two_formats_are_not_compared(tmp_path):
    """Base itself was asked in another way."""
    for name, way in (("a", "transcript"), ("b", "chat")):
        write_evaluated(tmp_path, name, format=way)
    with pytest.raises(ValueError, match="differ in format, so even Base was asked in another"):
        compare.load_runs(tmp_path, ["a", "b"])


def test_trade_off_of_a_run_from_before_a_setting_has_its_default(tmp_path):
    write_evaluated(tmp_path, "a", sft_loss="transcript")
    write_evaluated(tmp_path, "b")
    record = load(tmp_path / "b" / "run.json")
    del record["settings"]["training"]["sft_loss"]
    write(tmp_path / "b" / "run.json", record)
    records = measure_trade_off(compare.load_runs(tmp_path, ["a", "b"]))
    assert {(row["run"], row["value"]) for row in records} == {("a", "transcript"), ("b", "reply")}
