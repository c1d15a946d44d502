"""Time and memory that the presets would take on GPUs, computed: nothing is measured on a GPU.

    python -m benchmarks.scale [--dataset FOLDER [--tokenizer NAME]]

The rates are those of data sheets (benchmarks.gpus), the arithmetic and the memory are counted from
the architectures (benchmarks.costs, with the bytes of activations.json), and the CPU's rates are
those of speed.json. With --dataset, the lengths of the texts in a folder in HH-RLHF's layout are
measured anew, in tokens of a base's tokenizer. Otherwise they are those that were recorded. Writes
benchmarks/scale.json and the tables scale.md, scale_memory.md, scale_evaluation.md and
scale_processes.md.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from transformers import AutoTokenizer

from benchmarks import costs, gpus, scale_tables
from benchmarks.common import BENCHMARKS, existing_folder
from benchmarks.scale_inputs import count_operators_of_layer, describe_speed, measure_lengths
from posttrain.files import read_json, write
from posttrain.settings import Evaluation, Training, choose

OWN_BASES = {
    "small": costs.OPT_125M,
    "quick": costs.OPT_350M,
    "full": costs.OPT_350M,
    "paper": costs.OPT_350M,
}
LARGER_BASES = (costs.OPT_1B, costs.OPT_7B)
BASES = (costs.OPT_125M, costs.OPT_350M, *LARGER_BASES)
MANY_PROMPTS = 100_000  # of both kinds together
PROCESSES = (2, 4, 8, 16)
GAIN = 1.25  # of a doubling of the GPUs that pays
MEASURED_BASE = costs.OPT_350M  # of benchmarks.speed

Record = dict[str, Any]


def list_bases(preset: str) -> tuple[costs.Base, ...]:
    """List the bases that are computed for a preset, its own first."""
    return (OWN_BASES[preset], *LARGER_BASES)


def compute_training(record: Record) -> list[Record]:
    """Compute the seconds of all trainings, for every preset, base and device."""
    rows = []
    for preset in OWN_BASES:
        settings = choose(Training, preset)
        trainings = costs.list_trainings(settings, record["lengths"])
        for base in list_bases(preset):
            row = {"preset": preset, "base": base.name, "seconds": {}}
            row["petaflop"] = count_flop(base, trainings) / 1e15
            if base is OWN_BASES[preset] and settings.sft_method == "lora":
                row["seconds on the CPU"] = compute_training_on_cpu(base, trainings, record)
            for device in gpus.DEVICES:
                row["seconds"][device.name] = []
                for assumption in gpus.ASSUMPTIONS:
                    seconds = gpus.seconds_of_training(
                        base, settings, trainings, record, device, assumption
                    )
                    row["seconds"][device.name].append(seconds)
            rows.append(row)
    return rows


def count_flop(base: costs.Base, trainings: list[costs.Work]) -> float:
    """Count the floating-point operations of some trainings, validation included."""
    total = 0.0
    for work in trainings:
        tokens = work.steps * work.pairs * work.passes + work.held_out * work.forward_passes
        total += tokens * work.tokens * costs.flop_of_token(base)
    return total


def compute_training_on_cpu(
    base: costs.Base, trainings: list[costs.Work], record: Record
) -> float:
    """Compute the seconds of some trainings from the rates that were measured on a CPU."""
    seconds = 0.0
    size = costs.count_matrices(base) / costs.count_matrices(MEASURED_BASE)
    for work in trainings:
        pairs = work.steps * work.pairs + work.held_out * work.forward_passes / work.passes
        seconds += size * pairs * work.tokens_of_texts / record["speed"][work.stage]["rate"]
    return seconds


def compute_memory(record: Record) -> list[Record]:
    """Compute the bytes of a training for every base, with adapters and with all weights.

    Each row is of the training of a preset that takes the most memory.
    """
    rows = []
    units = record["activation bytes"]
    for preset in ("full", "paper"):
        settings = choose(Training, preset)
        trainings = costs.list_trainings(settings, record["lengths"])
        for base in BASES:
            totals = []
            for work in trainings:
                totals.append(costs.bytes_of_training(base, settings, work, 1, units))
            work = trainings[totals.index(max(totals))]
            row = {"preset": preset, "base": base.name, "stage": work.stage}
            row["bytes"] = costs.list_bytes(base, settings, work, 1, units)
            row["one pair"] = max(totals)
            step = settings.batch_size
            row["whole step"] = costs.bytes_of_training(base, settings, work, step, units)
            row["pass"] = {}
            for device in (gpus.T4, gpus.A100):
                pairs = gpus.find_pass(base, settings, work, units, device)
                row["pass"][f"{device.memory / 1e9:.0f} GB"] = pairs
            rows.append(row)
    return rows


def compute_evaluation(record: Record) -> list[Record]:
    """Compute the seconds of generation and judging, for presets and for very many prompts."""
    plans = [(preset, 2 * choose(Evaluation, preset).n_prompts) for preset in OWN_BASES]
    plans.append(("full", MANY_PROMPTS))
    rows = []
    for preset, prompts in plans:
        settings = choose(Evaluation, preset)
        for base in list_bases(preset):
            row = {"preset": preset, "prompts": prompts, "base": base.name, "seconds": {}}
            if base is OWN_BASES[preset]:
                row["seconds on the CPU"] = compute_evaluation_on_cpu(
                    base, settings, prompts, record
                )
            for device in gpus.DEVICES:
                row["seconds"][device.name] = []
                for assumption in gpus.ASSUMPTIONS:
                    answers = gpus.seconds_of_answers(
                        base, settings, prompts, record, device, assumption
                    )
                    judging = gpus.seconds_of_judging(
                        settings, prompts, record, device, assumption
                    )
                    total = None if answers is None else answers + judging
                    row["seconds"][device.name].append(total)
            rows.append(row)
    return rows


def compute_evaluation_on_cpu(
    base: costs.Base, settings: Evaluation, prompts: int, record: Record
) -> float:
    """Compute the seconds of an evaluation from the rates that were measured on a CPU."""
    lengths, rates, new = record["lengths"], record["speed"], settings.max_new_tokens
    size = costs.count_matrices(base) / costs.count_matrices(MEASURED_BASE)
    answers = gpus.MODELS * new * size / rates["generation"]["rate"]
    # Reading an answer again is a forward pass in fp32, as the judge's is.
    again = (gpus.MODELS - 1) * (lengths["test prompt"] + new) * size / rates["judging"]["rate"]
    judging = gpus.count_judged(settings, lengths) / rates["judging"]["rate"]
    return prompts * (answers + again + judging)


def compute_processes(record: Record) -> list[Record]:
    """Compute how much faster a step gets with several GPUs, for DPO and for SFT of all weights."""
    rows = []
    for preset, i in (("full", 1), ("paper", 0)):
        settings = choose(Training, preset)
        work = costs.list_trainings(settings, record["lengths"])[i]
        for base in list_bases(preset):
            for device in (gpus.T4, gpus.A100, gpus.H100):
                row = compute_speed_ups(base, settings, work, device, record)
                if row is not None:
                    rows.append({"preset": preset} | row)
    return rows


def compute_speed_ups(
    base: costs.Base,
    settings: Training,
    work: costs.Work,
    device: gpus.Device,
    record: Record,
) -> Record | None:
    """Compute how much faster a step gets with several GPUs of a kind.

    Args:
        base: the base.
        settings: of the preset.
        work: the training.
        device: one GPU.
        record: of scale.json.

    Returns:
        Under each assumption the seconds of a step on one GPU, the pairs that fill a GPU, the
        seconds in which as many GPUs as pairs exchange gradients, and by the number of GPUs the
        speed-up, with the number up to which it pays. None if one GPU is too small.
    """
    row: Record = {
        "base": base.name,
        "stage": work.stage,
        "device": device.name,
        "pairs": work.pairs,
        "gradient bytes": 4 * costs.count_trained(base, settings, work),
        "seconds": [],
        "exchange": [],
        "filled by": [],
        "speed-up": {},
    }
    units, operators = record["activation bytes"], record["operators"]
    for assumption in gpus.ASSUMPTIONS:
        alone = None
        for number in (1, *PROCESSES):
            several = replace(device, number=number)
            pairs = None
            if work.pairs % number == 0:
                pairs = gpus.find_pass(base, settings, work, units, several)
            if pairs is None:
                continue
            step = gpus.seconds_of_step(
                base, settings, work, pairs, several, assumption, operators
            )
            if number == 1:
                alone = step
                row["seconds"].append(step)
            elif alone is not None:
                row["speed-up"].setdefault(str(number), []).append(alone / step)
        if alone is None:
            return None
        most = replace(device, number=work.pairs)
        filled_by = gpus.pairs_that_fill(base, work, device, assumption, operators)
        row["filled by"].append(filled_by)
        trained = row["gradient bytes"] // 4
        row["exchange"].append(gpus.seconds_of_exchange(trained, most, assumption))
    row["pays to"] = [find_last_gain(row["speed-up"], i) for i in range(len(gpus.ASSUMPTIONS))]
    return row


def find_last_gain(speed_ups: Mapping[str, list[float]], assumption: int) -> int:
    """Find the number of GPUs up to which every doubling gains at least `GAIN`.

    Args:
        speed_ups: {number of GPUs: the speed-up under each assumption}.
        assumption: which one.
    """
    last, speed_up = 1, 1.0
    for number, values in speed_ups.items():
        if values[assumption] < GAIN * speed_up:
            break
        last, speed_up = int(number), values[assumption]
    return last


def compute(lengths: Record, operators: Record) -> Record:
    """Compute the whole record.

    Args:
        lengths: of `scale_inputs.measure_lengths`.
        operators: of `scale_inputs.count_operators_of_layer`.
    """
    units = read_json(BENCHMARKS / "activations.json", Record)["bytes"]
    text = lengths["prompt"] + lengths["chosen"]
    record: Record = {
        "lengths": lengths,
        "operators": operators,
        "devices": [asdict(device) for device in gpus.DEVICES],
        "assumptions": [asdict(assumption) for assumption in gpus.ASSUMPTIONS],
        "libraries": costs.LIBRARIES,
        "pairs of HH-RLHF": costs.HH_PAIRS,
        "doubling pays from": GAIN,
        "speed": describe_speed(read_json(BENCHMARKS / "speed.json", Record)),
        "activation bytes": units["OPT-350M"],
        "most activation bytes": max(values["bf16"] for values in units.values()),
        "share left out": {
            base.name: costs.share_left_out(base, text, lengths["chosen"]) for base in BASES
        },
    }
    record["training"] = compute_training(record)
    record["memory"] = compute_memory(record)
    record["evaluation"] = compute_evaluation(record)
    record["processes"] = compute_processes(record)
    return record


def main() -> None:
    """Compute, and write what was computed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--dataset", type=existing_folder, help="texts in HH-RLHF's layout; else those recorded"
    )
    parser.add_argument("--tokenizer", default="facebook/opt-350m", help="a hub name or a folder")
    options = parser.parse_args()
    if options.dataset:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        lengths = measure_lengths(options.dataset, tokenizer)
    else:
        lengths = read_json(BENCHMARKS / "scale.json", Record)["lengths"]
    record = compute(lengths, count_operators_of_layer())
    write(BENCHMARKS / "scale.json", record)
    for name, as_table in scale_tables.TABLES.items():
        write(BENCHMARKS / f"{name}.md", as_table(record))
        print(as_table(record))


if __name__ == "__main__":
    main()
