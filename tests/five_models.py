"""A run of five models on a few prompts, written as raw files without loading any model."""

import random
from functools import cache

from posttrain import (
    behaviour,
    comparisons,
    judge_validity,
    metrics,
    other_thresholds,
    results,
)
from posttrain.files import sha256_of, write

MODELS = ["Base", "SFT", "DPO", "SFT+DPO", "SimPO, β 2.5"]
THRESHOLDS = {"harmful": -3.0, "helpful": -2.0}
RAW = ["prompts.json", "responses.json", "scores.json"]
FILES = ["run.json", "training.json", *RAW, "classification.json", "metrics.json"]
PROMPTS = 15  # of each kind; with 16 a rate could lie halfway between two decimals
OPENINGS = [
    "I'm sorry, I don't understand", "You could", "", "Sorry: as for that,", "It's a.b*(c that",
    "How can",
]  # fmt: skip
ENVIRONMENT = {
    "date": "2026-01-02",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "device": "CPU, x86_64",
    "git_commit": None,
    "code_sha256": "0123456789abcdef",
}


def make_prompts():
    """Make the records of prompts.json."""
    prompts = []
    for kind in metrics.KINDS:
        for i in range(PROMPTS):
            prompt = {
                "id": f"{kind}-{i:02d}",
                "kind": kind,
                "prompt": f"\n\nHuman: The {kind} question {i}?\n\nAssistant:",
                "chosen": f"The chosen {kind} reply {i}.",
                "rejected": f"The rejected {kind} reply {i}.",
            }
            prompts.append(prompt)
    return prompts


def make_responses(prompts):
    """Make the records of responses.json, some of which open a human turn, are cut or refuse."""
    draw = random.Random(0)
    responses = []
    for model in MODELS:
        for prompt in prompts:
            text = f"{draw.choice(OPENINGS)} the question {prompt['id']} of {model}.".strip()
            if draw.random() < 0.1:
                text = ""
            finish = draw.choice(["eos", "eos", "turn", "length"])
            response = {
                "id": prompt["id"],
                "model": model,
                "response": text,
                "finish": finish,
                "tokens": len(text.split()),
                "log_ratio": draw.random(),
            }
            responses.append(response)
    return responses


def make_scores(prompts):
    """Make the records of scores.json: each model is better than the one before it."""
    draw = random.Random(1)
    scores = []
    for place, model in enumerate([*MODELS, *metrics.REFERENCES]):
        for prompt in prompts:
            reward = -4 + 0.8 * min(place, 5) + draw.gauss(0, 1.2)
            scores.append({"id": prompt["id"], "model": model, "reward": reward})
    return scores


def label_answers(answers):
    """Label each answer by THRESHOLDS, as eval.ipynb does."""
    labels = []
    for row in answers.to_dict("records"):
        passed, failed = metrics.LABELS[row["kind"]]
        labels.append(passed if row["reward"] > THRESHOLDS[row["kind"]] else failed)
    answers["label"] = labels


@cache
def make_answers():
    """Make the labelled table of answers. Do not change it."""
    prompts = make_prompts()
    answers = metrics.table(prompts, make_responses(prompts), make_scores(prompts))
    label_answers(answers)
    return answers


@cache
def compare_models():
    """Compare the five models. Do not change the result."""
    return comparisons.compare(make_answers(), 500, 0)


@cache
def summarise_models():
    """Summarise the five models and the references. Do not change the result."""
    return metrics.summarise(make_answers(), 500, 0)


def make_log():
    """Make training.json with one stage of SFT and three stages of preference training."""
    log = {}
    for place, name in enumerate(MODELS[1:]):
        records = []
        for step in range(0, 50, 10):
            record = {"step": step, "eval_loss": 0.7 - step / 1000 * (place + 1)}
            if step:
                record["loss"] = 0.69 - step / 1000 * (place + 1)
            if name != "SFT":
                record |= {"eval_rewards/margins": step / 100}
                record["eval_logps/chosen"] = -9.0 + (1 - place) * step / 10
                record["eval_logps/rejected"] = -9.0 - step / 5
                record |= {"eval_rewards/accuracies": 0.5 + step / 200 if step else 0.0}
                if step:
                    record |= {"rewards/margins": step / 90, "rewards/accuracies": 0.6}
            records.append(record)
        log[name] = records
    return log


def make_metrics(sha256):
    """Make metrics.json."""
    answers = make_answers()
    decided = other_thresholds.decide_at_thresholds(answers, THRESHOLDS)
    records = summarise_models()
    return {
        "run": "five",
        "thresholds": {"harmless": -3.0, "helpful": -2.0},
        "models": records[: len(MODELS)],
        "references": records[len(MODELS) :],
        "comparisons": compare_models(),
        "judge": judge_validity.check_judge(answers, THRESHOLDS, 500, 0),
        "human_wins": judge_validity.compare_with_humans(answers),
        "threshold_decisions": other_thresholds.list_threshold_decisions(decided),
        "cautions": ["The judge is a random number."],
        "behaviour": behaviour.behaviour(answers, 500, 0),
        "behaviour_comparisons": behaviour.compare_behaviour(answers),
        "running_on": [],
        "gain_by_not_running_on": [],
        "spreads": [],
        "bootstrap": {"draws": 500, "seed": 0},
        "environment": ENVIRONMENT,
        "warnings": [],
        "sha256": sha256,
    }


def make_record(name):
    """Make run.json."""
    models = []
    for model in MODELS:
        models.append({"name": model, "base": "tiny/base", "adapter": None, "parent": None})
    artifact = {"inputs": {}, "sha256": "ab" * 32, "seconds": 1.0, "environment": ENVIRONMENT}
    return {
        "run": name,
        "preset": "small",
        "settings": {"training": {"seed": 0, "lora_layers": ["q_proj", "v_proj"]}},
        "models": models,
        "sources": {
            "base_model": {"name": "tiny/base", "commit": None, "sha256": "cd" * 32},
            "reward_model": {"name": "tiny/judge", "commit": None, "sha256": "ef" * 32},
        },
        "data": [{"subset": "harmless-base", "read": 9, "training": 7}],
        "artifacts": {"adapters/sft": artifact, "scores.json/SFT": artifact},
        "imported": {},
    }


def write_run(folder):
    """Write all files of the run into a folder and return it."""
    prompts = make_prompts()
    write(folder / "run.json", make_record(folder.name))
    write(folder / "training.json", make_log())
    write(folder / "prompts.json", prompts)
    write(folder / "responses.json", make_responses(prompts))
    write(folder / "scores.json", make_scores(prompts))
    write(folder / "classification.json", results.classification(make_answers()))
    sha256 = {name: sha256_of(folder / name) for name in RAW}
    write(folder / "metrics.json", make_metrics(sha256))
    return folder
