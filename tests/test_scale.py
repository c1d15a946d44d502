"""The times and memory that are computed for GPUs follow from counts, and the tables from them."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, load
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

from benchmarks import costs, gpus, scale, scale_inputs, scale_tables, speed
from posttrain import data
from posttrain.settings import Evaluation, Training, choose

BENCHMARKS = ROOT / "benchmarks"
TINY = costs.Base("tiny", layers=2, width=8, embedding=8, vocabulary=10, positions=6)
LENGTHS = {
    "prompt": 100.0, "chosen": 50.0, "rejected": 70.0, "longest text": 400, "longest pair": 500,
    "longest reply": 90, "test prompt": 120.0, "longest test prompt": 300,
}  # fmt: skip
OPERATORS = {
    "adapters": {"forward": 40.0, "backward": 60.0},
    "all weights": {"forward": 20.0, "backward": 30.0},
    "asked": 10.0,
}
UNITS = {"fp32": 50.0, "bf16": 25.0}
RECORD = {"lengths": LENGTHS, "operators": OPERATORS, "activation bytes": UNITS}
AT_ONCE = gpus.Assumption(training=0.5, fp32=0.5, bandwidth=0.5, operator=0.0)  # nothing to start
HUGE = replace(gpus.H100, memory=1e15)


def build_on_meta(base):
    """Build the real model of a base without its weights."""
    config = OPTConfig(
        hidden_size=base.width,
        num_hidden_layers=base.layers,
        ffn_dim=4 * base.width,
        num_attention_heads=base.width // 64 or 1,
        word_embed_proj_dim=base.embedding,
        do_layer_norm_before=base.embedding == base.width,
        vocab_size=base.vocabulary,
        max_position_embeddings=base.positions - 2,
    )
    with torch.device("meta"):
        return OPTForCausalLM(config)


# ---- counts


def test_arithmetic_of_a_tiny_base():
    """Two layers of 12 × 8 × 8 weights, twice, and the same count as in benchmarks.speed."""
    assert costs.count_matrices(TINY) == 1536
    assert costs.flop_of_token(TINY) == 3072
    assert costs.flop_of_head(TINY) == 160
    # 4 × 2 × 8 × 5 for the scores of each of five tokens, and the head for two of them
    assert costs.share_left_out(TINY, 5, 2) == pytest.approx((5 * 320 + 2 * 160) / (5 * 3072))
    assert costs.flop_of_token(costs.OPT_350M) == speed.FLOP_OF_A_PASS


@pytest.mark.parametrize("base", [TINY, *scale.BASES], ids=lambda base: base.name)
def test_weights_are_those_of_the_real_model(base):
    """Weights and adapters are as many as torch and peft have."""
    model = build_on_meta(base)
    assert model.num_parameters() == costs.count_weights(base)
    settings = choose(Training, "full")
    weights = sum(weight.nbytes for weight in model.bfloat16().parameters())
    assert costs.bytes_of_weights(base, settings) == weights
    outside = ["project_in", "project_out"] if base.embedding != base.width else None
    for preset in ("full", "paper"):
        settings = choose(Training, preset)
        layers = settings.lora_layers
        lora = LoraConfig(
            r=settings.lora_r,
            target_modules=layers if layers == "all-linear" else list(layers),
            exclude_modules=outside,
        )
        with torch.device("meta"):
            adapted = get_peft_model(build_on_meta(base), lora)
        trained = adapted.get_nb_trainable_parameters()[0]
        assert trained == costs.count_adapters(base, settings)


def test_operators_are_counted_without_views():
    """A layer that answers has six products, attention, two norms and a few more operators."""
    counts = scale_inputs.count_operators_of_layer()
    assert 12 <= counts["asked"] <= 20
    assert counts["asked"] <= counts["all weights"]["forward"] < counts["adapters"]["forward"]
    assert counts["all weights"]["backward"] < counts["adapters"]["backward"]
    with scale_inputs.OperatorCounter() as counter:
        torch.ones(2, 3).view(3, 2).t() + 1
    assert counter.number == 2


def test_trainings_of_the_presets():
    """The steps, passes and tokens follow from the settings."""
    settings = choose(Training, "quick")
    sft, dpo, again = costs.list_trainings(settings, LENGTHS)
    assert sft.steps == dpo.steps == -(-(20_000 - 496) // 16)
    assert (sft.passes, dpo.passes, again) == (2, 3, dpo)
    assert (sft.tokens, dpo.tokens, dpo.tokens_of_texts) == (150, 220, 320)
    assert (sft.longest, dpo.longest, sft.replies, dpo.replies) == (400, 500, 90, 180)
    assert sft.held_out == 5 * 496
    sft, dpo, _ = costs.list_trainings(choose(Training, "paper"), LENGTHS)
    assert sft.steps == 2 * dpo.steps == 2 * (costs.HH_PAIRS - 2000) // 8
    assert (sft.passes, dpo.passes) == (3, 3)
    assert (sft.replies, dpo.tokens, dpo.longest) == (400, 320, 800)
    assert (sft.trains_all, dpo.trains_all) == (True, False)


def test_lengths_are_those_of_the_prepared_texts(hub):
    """Means and maxima are those of the texts that SFT reads."""
    tokenizer = AutoTokenizer.from_pretrained(hub / "opt")
    lengths = scale_inputs.measure_lengths(hub / "hh-rlhf", tokenizer)
    settings = choose(Training, "quick", max_pairs=None, validation_pairs=1)
    pairs = data.load_pairs(hub / "hh-rlhf", tokenizer, settings)
    texts = [len(ids) for ids in pairs.for_sft("train")["input_ids"]]
    assert lengths["pairs"] == len(texts)
    assert lengths["prompt"] + lengths["chosen"] == pytest.approx(sum(texts) / len(texts))
    assert max(texts) <= lengths["longest text"] < lengths["longest pair"] <= 2 * 512
    assert lengths["test prompt"] <= lengths["longest test prompt"]
    assert lengths["tokenizer"] == "opt"


# ---- memory


def test_memory_of_a_tiny_base_by_hand():
    """The parts of a pass of SFT over three pairs, with adapters and with all weights."""
    settings = choose(Training, "full")
    sft, *_ = costs.list_trainings(settings, LENGTHS)
    weights = costs.count_weights(TINY)
    parts = costs.list_bytes(TINY, settings, sft, 3, UNITS)
    adapters = 2 * 18 * 8 * 16
    assert parts["weights"] == 2 * weights
    assert parts["trained"] == 16 * adapters
    assert parts["activations"] == 3 * 400 * 2 * 8 * 25
    assert parts["logits"] == 3 * 90 * 10 * 8
    several = costs.list_bytes(TINY, settings, sft, 3, UNITS, gpus=2)
    assert several["trained"] == 20 * adapters
    total = costs.bytes_of_training(TINY, settings, sft, 3, UNITS)
    assert total == sum(parts.values())

    settings = choose(Training, "paper")
    sft, *_ = costs.list_trainings(settings, LENGTHS)
    parts = costs.list_bytes(TINY, settings, sft, 1, UNITS)
    assert parts["weights"] == 4 * weights + 2 * 1536
    assert parts["trained"] == 12 * weights
    assert parts["activations"] == 400 * 2 * 8 * 50


def test_the_largest_pass_that_fits_is_taken():
    """It divides the step, it fits, and the next larger one would not."""
    settings = choose(Training, "full")
    work = costs.list_trainings(settings, LENGTHS)[1]
    exactly = costs.bytes_of_training(costs.OPT_1B, settings, work, 4, UNITS)
    for memory, pairs in ((exactly, 4), (exactly - 1, 2), (1e15, 16), (1e9, None)):
        device = replace(gpus.T4, memory=memory)
        assert gpus.find_pass(costs.OPT_1B, settings, work, UNITS, device) == pairs
    assert gpus.find_pass(costs.OPT_1B, settings, work, UNITS, replace(HUGE, number=8)) == 2
    seven = [gpus.find_pass(costs.OPT_7B, settings, work, UNITS, d) for d in (gpus.T4, gpus.A100)]
    assert seven[0] is None
    assert seven[1] >= 1
    assert gpus.count_texts_at_once(costs.OPT_7B, 400, gpus.T4) is None
    assert gpus.count_texts_at_once(costs.OPT_350M, 400, HUGE) == 256


# ---- time


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_time_of_training_by_hand(preset):
    """It is the arithmetic over the rate, twice as long with texts of twice the length."""
    settings = choose(Training, preset)
    double = {name: 2 * value for name, value in LENGTHS.items()}
    seconds = []
    for lengths in (LENGTHS, double):
        trainings = costs.list_trainings(settings, lengths)
        arguments = (costs.OPT_1B, settings, trainings, RECORD, HUGE, AT_ONCE)
        seconds.append(gpus.seconds_of_training(*arguments))
        flop = scale.count_flop(costs.OPT_1B, trainings)
        assert seconds[-1] == pytest.approx(flop / (0.5 * HUGE.training))
    assert seconds[1] == pytest.approx(2 * seconds[0])
    sft, *_ = costs.list_trainings(settings, LENGTHS)
    tokens = 150 * (sft.passes * sft.steps * sft.pairs + sft.held_out)
    one = scale.count_flop(costs.OPT_1B, [sft])
    assert one == tokens * 2 * 24 * 12 * 2048**2
    trainings = costs.list_trainings(settings, LENGTHS)
    small = replace(HUGE, memory=1e9)
    arguments = (costs.OPT_1B, settings, trainings, RECORD, small, AT_ONCE)
    assert gpus.seconds_of_training(*arguments) is None


def test_a_small_pass_takes_the_time_of_starting_its_operators():
    """With the pairs that fill a GPU both times are equal; with fewer it is not faster."""
    settings = choose(Training, "full")
    work = costs.list_trainings(settings, LENGTHS)[1]
    slow = replace(AT_ONCE, operator=20e-6)
    starting = 24 * (2 * 40 + 60) * 20e-6
    fill = gpus.pairs_that_fill(costs.OPT_350M, work, HUGE, slow, OPERATORS)
    flop = fill * 220 * 3 * costs.flop_of_token(costs.OPT_350M)
    assert flop / (0.5 * HUGE.training) == pytest.approx(starting)
    assert fill > 1
    for pairs in (1, 2):
        one_pass = replace(work, pairs=pairs)
        arguments = (costs.OPT_350M, settings, one_pass, pairs, HUGE, slow, OPERATORS)
        assert gpus.seconds_of_step(*arguments) == pytest.approx(starting)


def test_exchange_of_gradients_by_hand():
    """Eight GPUs send 14/8 of the gradients, in four bytes each; one GPU sends nothing."""
    link = replace(gpus.H100, link=1000.0, number=8)
    assert gpus.seconds_of_exchange(100, link, AT_ONCE) == pytest.approx(1.75 * 400 / 500)
    assert gpus.seconds_of_exchange(100, replace(link, number=1), AT_ONCE) == 0


def test_data_parallel_training_is_limited(monkeypatch):
    """By the pairs of a step, by the time of starting operators, and by the exchange."""
    settings = choose(Training, "full")
    work = costs.list_trainings(settings, LENGTHS)[1]
    device = replace(HUGE, link=1e18)

    def compute(changed, assumption, work=work):
        monkeypatch.setattr(gpus, "ASSUMPTIONS", (assumption,))
        return scale.compute_speed_ups(costs.OPT_350M, settings, work, changed, RECORD)

    row = compute(device, AT_ONCE)
    for number in scale.PROCESSES:
        assert row["speed-up"][str(number)] == [pytest.approx(number, rel=1e-3)]
    assert row["pays to"] == [16]
    assert list(compute(device, AT_ONCE, replace(work, pairs=4))["speed-up"]) == ["2", "4"]
    slow = compute(device, replace(AT_ONCE, operator=1.0))
    assert slow["speed-up"]["16"] == [pytest.approx(1)]
    assert slow["pays to"] == [1]
    assert compute(replace(device, link=1e6), AT_ONCE)["speed-up"]["2"][0] < 0.1
    assert compute(replace(device, memory=1e9), AT_ONCE) is None


def test_a_doubling_pays_while_it_gains_enough():
    speed_ups = {"2": [1.9, 1.3], "4": [3.0, 1.5], "8": [3.2, 3.0]}
    assert [scale.find_last_gain(speed_ups, i) for i in (0, 1)] == [4, 2]
    assert scale.find_last_gain({"2": [1.1]}, 0) == 1


def test_time_of_the_evaluation():
    """Judging is arithmetic; a step of generation is bounded by the slowest of three things."""
    settings = choose(Evaluation, "full")
    assert gpus.count_judged(settings, LENGTHS) == 6 * (120 + 128) + 3 * 120
    arguments = (settings, 1000, RECORD, HUGE, AT_ONCE)
    expected = 1000 * 1848 * speed.FLOP_OF_A_PASS / (0.5 * HUGE.fp32)
    assert gpus.seconds_of_judging(*arguments) == pytest.approx(expected, rel=0.01)

    def seconds(prompts=256, device=HUGE, assumption=AT_ONCE):
        arguments = (costs.OPT_350M, settings, prompts, RECORD, device, assumption)
        return gpus.seconds_of_answers(*arguments)

    assert seconds(512) == pytest.approx(2 * seconds(256))
    assert seconds(512, replace(HUGE, number=8)) == pytest.approx(seconds(256))
    # nothing but the weights and the cache, read in every step
    infinite = replace(HUGE, fp32=1e30)
    cache = 256 * 2 * 4 * 24 * 1024 * (120 + 64)
    reading = 4 * costs.count_weights(costs.OPT_350M) + 3 * cache
    expected = 4 * 128 * reading / (0.5 * HUGE.bandwidth)
    assert seconds(device=infinite) == pytest.approx(expected)
    # nothing but starting operators: four models read and generate, and three texts are read again
    fast = replace(infinite, bandwidth=1e30)
    starting = 24 * 10 * 1e-3
    expected = (4 * 129 + 3) * starting
    assert seconds(device=fast, assumption=replace(AT_ONCE, operator=1e-3)) == pytest.approx(
        expected
    )


def test_times_on_the_cpu_follow_from_its_rates():
    """They need no share: twice the rate is half the time, and OPT-125M has fewer weights."""
    record = RECORD | {"speed": {}}
    for stage in ("SFT", "DPO", "generation", "judging"):
        record["speed"][stage] = {"rate": 100.0}
    trainings = costs.list_trainings(choose(Training, "small"), LENGTHS)
    sft = trainings[:1]
    seconds = scale.compute_training_on_cpu(costs.OPT_350M, sft, record)
    assert seconds == pytest.approx((720 + 5 * 80 / 2) * 150 / 100)
    smaller = scale.compute_training_on_cpu(costs.OPT_125M, sft, record)
    assert smaller == pytest.approx(seconds * 12 * 768**2 / (24 * 1024**2))
    evaluation = choose(Evaluation, "small")
    asked = scale.compute_evaluation_on_cpu(costs.OPT_350M, evaluation, 10, record)
    assert asked == pytest.approx(10 * (4 * 128 + 3 * 248 + 1848) / 100)


# ---- tables


def test_numbers_are_written_with_two_digits():
    assert scale_tables.write_duration([89.0, 44.4]) == "44 to 89 s"
    assert scale_tables.write_duration([90.0, 30.0]) == "0.5 to 1.5 min"
    assert scale_tables.write_duration([7200.0, 7201.0]) == "2 h"
    assert scale_tables.write_duration([86400.0 * 12.4]) == "12 days"
    assert scale_tables.write_duration([None, None]) == "does not fit"
    assert scale_tables.write_span([1234.0, 0.0567]) == "0.057 to 1,200"
    assert scale_tables.write_gpus([1, 1]) == "1 GPU"
    assert scale_tables.write_gpus([4, 1]) == "1 to 4 GPUs"


def test_committed_record_follows_from_the_other_records():
    """It was computed from the committed speed.json and activations.json, by this code."""
    record = load(BENCHMARKS / "scale.json")
    computed = scale.compute(record["lengths"], record["operators"])
    assert json.loads(json.dumps(computed)) == record


@pytest.mark.parametrize("name", scale_tables.TABLES)
def test_committed_tables_follow_from_the_committed_record(name):
    table = scale_tables.TABLES[name](load(BENCHMARKS / "scale.json"))
    assert table == (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")


def test_tables_are_made_anew_without_the_dataset(tmp_path, monkeypatch):
    """The lengths are read from the record, whatever speed.json has become."""
    for name in ("scale", "activations"):
        (tmp_path / f"{name}.json").write_bytes((BENCHMARKS / f"{name}.json").read_bytes())
    recorded = load(BENCHMARKS / "speed.json")
    for measured in recorded["runs"]["SFT"]["ours"]:
        measured["seconds"] = [2 * second for second in measured["seconds"]]
    (tmp_path / "speed.json").write_text(json.dumps(recorded), encoding="utf-8")
    monkeypatch.setattr(scale, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["scale"])
    scale.main()
    before, after = load(BENCHMARKS / "scale.json"), load(tmp_path / "scale.json")
    assert after["lengths"] == before["lengths"]
    assert after["speed"]["SFT"]["share"] == pytest.approx(before["speed"]["SFT"]["share"] / 2)
    for name in scale_tables.TABLES:
        assert (tmp_path / f"{name}.md").read_text(encoding="utf-8").startswith("| ")
