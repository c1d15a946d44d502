"""Model cards: what a trained model is, how it is used, what was measured, and whose licences."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from posttrain.chat import OPTIONS
from posttrain.files import read_json, sha256_of, write
from posttrain.formats import as_markdown, escape_markdown
from posttrain.hub import STAND_INS
from posttrain.presets import HH, is_hh
from posttrain.record import Artifact, Model
from posttrain.run import Run
from posttrain.style import format_number
from posttrain.tables import summary

CARD = "README.md"  # the name under which the hub shows a card
TEMPLATE = Path(__file__).with_name("card.md")
QUESTION = "How do I bake a crusty loaf?"
NEW_TOKENS = 48  # of the answer in the card
# What a card names of the trainer's arguments and of the adapter's config
ARGUMENTS = (
    "learning_rate", "num_train_epochs", "pairs_in_a_step", "lr_scheduler_type", "warmup_steps",
    "weight_decay", "max_length", "beta", "loss_type", "loss_weights", "label_smoothing", "seed",
)  # fmt: skip
ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout")
OPT_LICENCE = "opt-175b"
METHODS = {"PairTrainer": "dpo"}  # trainers whose name does not say how they train
RATES = {
    "HmR": ("harmlessness rate", "harmless-base", ("harmful",)),
    "HpR": ("helpfulness rate", "helpful-base", ("helpful",)),
    "CAS": ("combined alignment score", None, ("harmful", "helpful")),
}
Licence = dict[str, Any]  # {"license", "license_name", "license_link"}, as in a card's metadata


def build_card(
    run: Run,
    model: Model,
    place: str,
    subfolder: str | None = None,
    training: Artifact | None = None,
    merged: bool = False,
) -> ModelCard:
    """Build the card of a trained model from the record of its run.

    Rates are in it if the run has been evaluated and its files are those that were measured.

    Args:
        run: the run that the model belongs to.
        model: the model.
        place: where the card's snippet loads the model from: a folder, or a name on the hub.
        subfolder: the part of `place` that has the model, None for all of it. With a subfolder, a
            fine-tuned base is loaded from `place` too, and else from the run's folder.
        training: the record of the training, None to take it from run.json.
        merged: whether the adapter has been merged into its base at `place`.

    Returns:
        The card.

    Raises:
        ValueError: if the model was not trained in the run.
    """
    if model.place is None:
        raise ValueError(f"{model.name} was not trained in {run.folder}, so it has no card.")
    record = run.record
    is_new = training is not None  # so what was measured is another model
    training = training or record.artifacts[model.place]
    base, data = _name_source(run, "base_model"), _name_source(run, "dataset")
    measured = None if is_new else _read_metrics(run, model)
    is_plain = merged or model.adapter is None
    adapter = (training.inputs.get("adapter_config") or {}).get("peft_type", "")
    method = training.inputs.get("trainer", "").rsplit(".", 1)[-1]
    metadata = ModelCardData(
        model_name=f"{model.name} ({run.name})",
        language="en" if _is_hh_itself(data["name"]) else None,
        base_model=base["name"] if base["commit"] else None,
        base_model_relation="finetune" if is_plain else "adapter",
        datasets=[data["name"]] if data["commit"] else None,
        library_name="transformers" if is_plain else "peft",
        pipeline_tag="text-generation",
        tags=[tag for tag in ("trl", _name_method(method), adapter.lower()) if tag],
        eval_results=_list_results(run, model, measured),
        **_read_licence(base["name"]),
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        metadata=metadata.to_yaml(),
        title=escape_markdown(f"{model.name}, of the run {run.name}"),
        demo=record.preset == "demo",
        what=_describe(run, model, base["name"], subfolder, merged),
        run=escape_markdown(run.name),
        parent=escape_markdown(model.parent) if model.parent else None,
        chat=record.settings.get("training", {}).get("format") == "chat",
        loaded=_list_places(run, model, place, subfolder, merged),
        is_relative=not subfolder and not Path(place).is_absolute(),
        question=QUESTION,
        new_tokens=NEW_TOKENS,
        options=OPTIONS,
        is_hh=is_hh(data["name"]),
        is_hh_itself=_is_hh_itself(data["name"]),
        settings=_list_settings(run, training),
        base={"name": base["name"], "licence": _explain_licence(_read_licence(base["name"]))},
        data={"name": data["name"], "licence": _explain_licence(_read_licence(data["name"]))},
        **_describe_rates(run, model, measured),
    )


def write_cards(run: Run) -> None:
    """Write the card of every trained model that is in a run's folder."""
    for model in run.models:
        if model.place and run.path(model.place).exists():
            place = run.path(model.place)
            write(place / CARD, str(build_card(run, model, str(place))))


# ---- sources and licences


def _name_source(run: Run, role: str) -> dict[str, str | None]:
    """Look up the base or the dataset of a run: {"name", "commit", "sha256"}."""
    name = run.models[0].base if role == "base_model" else "not recorded"
    return run.record.sources.get(role, {"name": name, "commit": None, "sha256": None})


def _is_hh_itself(name: str) -> bool:
    """Tell whether a dataset is HH-RLHF on the hub, or the demo's stand-in for it."""
    return name in (HH, f"{STAND_INS}/hh-rlhf")


def _read_licence(name: str) -> Licence:
    """Look up the licence of a base or dataset, which is unknown unless its own card names it."""
    if re.fullmatch(r"facebook/opt-\d[\w.]*", name):
        link = f"https://huggingface.co/{name}/blob/main/LICENSE.md"
        return {"license": "other", "license_name": OPT_LICENCE, "license_link": link}
    if _is_hh_itself(name) or Path(name).is_relative_to(STAND_INS):
        return {"license": "mit"}
    path, fields = Path(name) / CARD, {}
    if path.is_file():
        try:
            fields = metadata_load(path) or {}
        except (ValueError, yaml.YAMLError) as error:
            print(f"The metadata of {path} cannot be read ({error}), so its licence is unknown.")
    licence = {}
    for field in ("license", "license_name", "license_link"):
        if isinstance(fields.get(field), str):
            licence[field] = fields[field]
    return licence if "license" in licence else {"license": "unknown"}


def _explain_licence(licence: Licence) -> str:
    """Write a licence for the text of a card."""
    if licence["license"] == "unknown":
        return "unknown. Look at its page before you use or share the model."
    name = licence.get("license_name", licence["license"])
    link = licence.get("license_link")
    text = f"[{escape_markdown(name)}]({link})" if link else escape_markdown(name)
    if name == OPT_LICENCE:
        return f"Meta's licence {text}, which allows non-commercial research only."
    return f"{text}."


# ---- what the model is, and how it is used


def _describe(run: Run, model: Model, base: str, subfolder: str | None, merged: bool) -> str:
    """Say in a sentence what the model is."""
    if model.base != run.models[0].base:
        place = model.base if subfolder else f"{run.folder.name}/{model.base}"
        base = f"{base}` as fine-tuned in `{place}"
    if model.adapter is None:
        return f"The causal language model `{base}`: all of its weights were trained."
    if merged:
        return f"The causal language model `{base}` with an adapter merged into its weights."
    return f"An adapter of the PEFT library for the causal language model `{base}`."


def _name_method(trainer: str) -> str:
    """Name the method of a trainer for the hub, such as "sft"."""
    return METHODS.get(trainer, trainer.removesuffix("Trainer").lower())


def _list_places(
    run: Run, model: Model, place: str, subfolder: str | None, merged: bool
) -> dict[str, str | None]:
    """Write the arguments with which the snippet loads the base, the model and the tokenizer."""
    source = _name_source(run, "base_model")
    of_run = _write_place(source["name"], revision=source["commit"])
    trained = _write_place(place, subfolder=subfolder)
    if merged:
        return {"base": None, "trained": trained, "tokenizer": trained}
    base = None
    if model.adapter is not None:
        base = of_run
        if model.base != run.models[0].base:
            base = _write_place(str(run.path(model.base)))
            if subfolder:
                base = _write_place(place, subfolder=model.base)
    return {"base": base, "trained": trained, "tokenizer": of_run}


def _write_place(place: str, **options: str | None) -> str:
    """Write the arguments of a `from_pretrained`."""
    given = [f"{name}={json.dumps(value)}" for name, value in options.items() if value]
    return ", ".join([json.dumps(place, ensure_ascii=False), *given])


def _list_settings(run: Run, training: Artifact) -> dict[str, str]:
    """List how the model was trained: {what: value in markdown}."""
    inputs, made_with = training.inputs, training.environment
    adapter = inputs.get("adapter_config") or {}
    values = {"trainer": inputs.get("trainer")}
    values["pairs"] = sum(row.get("training", 0) for row in run.record.data) or None
    values |= {name: inputs.get("arguments", {}).get(name) for name in ARGUMENTS}
    values |= {name: adapter.get(name) for name in ADAPTER}
    adapted = adapter.get("target_modules") or ()
    if not isinstance(adapted, str):  # a pattern
        layers = {layer.rsplit(".", 1)[-1] for layer in adapted}
        adapted = ", ".join(sorted(layers.difference(adapter.get("exclude_modules") or ())))
    values["adapted layers"] = adapted
    for role in ("base_model", "dataset"):
        source = _name_source(run, role)
        version = source["commit"] or f"sha256 {source['sha256']}"
        values[role] = f"{source['name']} ({version})"
    packages = made_with.get("packages", {}).items()
    values["packages"] = ", ".join(f"{name} {version}" for name, version in packages)
    values |= {name: made_with.get(name) for name in ("python", "device")}
    values["commit of the training code"] = made_with.get("git_commit")
    listed = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            is_argument = name in ARGUMENTS or name in ADAPTER
            shown = f"`{name}`" if is_argument else name.replace("_", " ")
            listed[shown] = escape_markdown(str(value))
    return listed


# ---- what was measured


def _read_metrics(run: Run, model: Model) -> dict[str, Any] | None:
    """Read metrics.json, if it measures a model as it is now.

    Args:
        run: the run that the model belongs to.
        model: the model.

    Returns:
        The content of metrics.json, or None if it is missing, does not contain the model, or was
        made from other files or from another training than the run has now.
    """
    artifacts, path = run.record.artifacts, run.path("metrics.json")
    answered = artifacts.get(f"responses.json/{model.name}")
    if answered is None or not path.exists():
        return None
    used = [answered.inputs.get("adapter"), answered.inputs.get("fine_tuned_base")]
    if artifacts[model.place].sha256 not in used:
        return None
    measured = read_json(path, dict[str, Any])
    for name, sha256 in measured["sha256"].items():
        if not run.path(name).exists() or sha256_of(run.path(name)) != sha256:
            return None
    return measured if model.name in [row["model"] for row in measured["models"]] else None


def _row_of(measured: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Find the rates of a model."""
    return next(row for row in measured["models"] if row["model"] == name)


def _list_results(
    run: Run, model: Model, measured: Mapping[str, Any] | None
) -> list[EvalResult] | None:
    """List the rates with their intervals for the model-index of a card's metadata."""
    if measured is None:
        return None
    row, data = _row_of(measured, model.name), _name_source(run, "test_dataset")
    results = []
    for rate, (meaning, subset, kinds) in RATES.items():
        if row.get(rate) is None:
            continue
        low, high = row[f"{rate}_low"], row[f"{rate}_high"]
        prompts = {f"{kind}_prompts": row[f"{kind}_prompts"] for kind in kinds}
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=data["name"] if data["commit"] else "local",
                dataset_name=f"{data['name']}, {' and '.join(kinds)} prompts",
                dataset_config=subset,
                dataset_split="test",
                dataset_revision=data["commit"],
                metric_type=rate,
                metric_name=f"{meaning} in percent, 95% interval {low:.1f} to {high:.1f}",
                metric_value=round(row[rate], 1),
                metric_args={
                    "low": low,
                    "high": high,
                    **prompts,
                    "judge": _name_source(run, "reward_model")["name"],
                    "thresholds": measured["thresholds"],
                },
            )
        )
    return results


def _describe_rates(run: Run, model: Model, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write what a card says of the evaluation, and the cautions of the evaluation."""
    if measured is None:
        return {"rates": None, "cautions": []}
    first, row = measured["models"][0], _row_of(measured, model.name)
    kinds = [kind for kind in ("harmful", "helpful") if row[f"{kind}_prompts"]]
    counts = [f"{row[f'{kind}_prompts']} {kind}" for kind in kinds]
    evaluated = run.record.settings.get("evaluation", {})
    caption = f"The run's base and this model. Run {measured['run']}."
    return {
        "rates": as_markdown(summary([first, row]), caption).strip(),
        "cautions": [escape_markdown(caution) for caution in measured["cautions"]],
        "harmless": format_number(measured["thresholds"]["harmless"]),
        "helpful": format_number(measured["thresholds"]["helpful"]),
        "judge": _name_source(run, "reward_model")["name"],
        "test_data": _name_source(run, "test_dataset")["name"],
        "prompts": f"{' and '.join(counts)} prompts",
        "agreement": measured.get("judge") or [],
        "limit": evaluated.get("max_new_tokens"),
        "of_study": evaluated.get("protocol") == "paper",
    }
