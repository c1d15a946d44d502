"""The demo is sound: whole words, no unlearning, every trained model above the baseline."""

import pytest

from benchmarks.common import BENCHMARKS, DEMO, ROOT
from benchmarks.seeds import SEEDS
from benchmarks.soundness import list_faults, list_words, measure, read_vocabulary
from posttrain.files import read_json


@pytest.fixture(scope="module")
def vocabulary():
    return read_vocabulary(DEMO)


def sound(**changes):
    """Make the record of a sound model."""
    record = {"model": "DPO", "answers": 100, "unknown": 1, "chosen": [-8.0, -11.9]}
    return record | {"accuracy": 0.8, "margin": 1.0, "CAS": 51.0, "baseline": 50.0} | changes


def test_words_do_not_depend_on_capitals_or_marks():
    assert list_words(["Don't ask; Zoë’s cat", "don't!"]) == {"don't", "ask", "zoë’s", "cat"}
    assert list_words(["7 _ — 😤"]) == set()


def test_every_fault_is_named():
    assert list_faults([sound()]) == []
    assert list_faults([sound(chosen=None)]) == []
    (unknown,) = list_faults([sound(unknown=2)])
    assert unknown.startswith("2 of 100 answers of DPO contain a word")
    (fallen,) = list_faults([sound(chosen=[-8.0, -12.0])])
    assert fallen == "Log p(chosen) of DPO has fallen by 50% of its start."
    (below,) = list_faults([sound(CAS=50.0)])
    assert "not above that of the baseline" in below


def test_an_invented_word_is_found(vocabulary):
    assert not list_words(["I can't help with that. Use a hot pot with a lid."]) - vocabulary
    assert list_words(["I want to talkink-rows at stepend."]) - vocabulary > {"talkink", "stepend"}


def test_the_committed_example_is_sound(vocabulary):
    records = measure(ROOT / "results" / "example", vocabulary)
    assert [record["model"] for record in records] == ["SFT", "DPO", "SFT+DPO"]
    assert list_faults(records) == []


def test_five_seeds_were_sound():
    soundness = read_json(BENCHMARKS / "seeds.json", dict)["soundness"]
    assert list(soundness) == SEEDS.split()
    assert len(soundness) == 5
    for records in soundness.values():
        assert len(records) == 3
        assert list_faults(records) == []


def test_the_overtrained_run_is_not():
    """What docs/demo.md shows of it: the falling log p(chosen) is a warning that is right."""
    record = read_json(BENCHMARKS / "overtrained.json", dict)
    assert [fault for fault in list_faults(record["models"]) if "Log p(chosen)" in fault]
    sft, *broken = record["models"]
    assert min(model["CAS"] for model in broken) > sft["CAS"] - 10
    assert any("fall apart" in paragraph for paragraph in record["conclusions"])
