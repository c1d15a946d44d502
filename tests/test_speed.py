"""The benchmark of speed at toy size: it runs, and the work is the same whichever way it is done."""

import json
import statistics

import pytest
import trl.trainer.utils
from conftest import ROOT, load

from benchmarks import speed
from demo import build


@pytest.fixture(scope="module")
def toys(hub, tmp_path_factory):
    """A base and a judge of toy size, and the dataset."""
    folder = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.OPT, "vocab_size", build.OPT["vocab_size"])  # is set, and set back afterwards
        yield folder, speed.build_models(folder, toy=True)


@pytest.fixture(autouse=True)
def head(monkeypatch):
    """Set back what the baselines set: TRL's own choice of the positions that go through the vocabulary."""
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", trl.trainer.utils._use_triton)


@pytest.mark.parametrize(("stage", "key"), [("SFT", "loss"), ("DPO", "log p(chosen)")])
def test_first_step_is_the_same(toys, stage, key):
    """The study's way and the notebook's give the same loss on the same pairs."""
    ours, published = (speed.prove_same_loss(stage, way, *toys) for way in ("ours fp32", "published"))
    assert ours[key] == pytest.approx(published[key], rel=1e-4)


def test_answers_and_rewards_are_the_same(toys):
    """Many at a time or one: the same texts, and rewards within rounding."""
    texts = [speed.measure_generation(way, *toys)["texts"] for way in ("ours", "published")]
    assert texts[0] == texts[1]
    rewards = [speed.measure_judging(way, *toys)["rewards"] for way in ("ours", "published")]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)


def test_two_steps_are_timed(toys):
    """Of sixteen pairs, eight in a step; only ours takes the notebook's own trainer."""
    found = speed.measure_training("SFT", "ours", *toys)
    assert (len(found["seconds"]), found["pairs"]) == (2, speed.PAIRS)
    assert found["tokens"] > 16 * 20


def test_committed_table_follows_from_the_committed_timings():
    """And these are of full-size models, with the proofs that the work was the same."""
    record = load(ROOT / "benchmarks" / "speed.json")
    assert not record["toy"]
    assert speed.as_table(record) == (ROOT / "benchmarks" / "speed.md").read_text(encoding="utf-8")
    assert speed.same_work(record["proofs"], record["runs"]) == record["same work"]
    assert json.dumps(record).count("seconds") >= 20
    assert all(statistics.median(run["peak GiB"] for run in runs) > 0 for ways in record["runs"].values()
               for runs in ways.values())
