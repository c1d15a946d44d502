"""Copy a run's trained models into a new run, whose evaluation asks them in another way."""

import shutil
from pathlib import Path
from typing import Any

from posttrain import settings
from posttrain.evaluation_settings import list_contradicted
from posttrain.files import write, written_whole
from posttrain.parameters import Parameters
from posttrain.processes import decided_by_main
from posttrain.record import Artifact, Model, Record
from posttrain.run import Run

EXAMPLE = "make reask FROM=quick RUN=quick-paper PROTOCOL=paper"


def open_runs(parameters: Parameters) -> tuple[Run, Run]:
    """Open the run that FROM names and the run RUN, which may not exist yet.

    Args:
        parameters: the parameters of the command line.

    Returns:
        Both runs. The second does not exist, or contains the models of the first.

    Raises:
        ValueError: if one of them is not named, FROM is no run whose trained models are there, or
            RUN is another run already.
    """
    name, new = parameters.FROM, parameters.RUN
    if not name:
        raise ValueError(f"FROM: name the run whose models are asked again, as in {EXAMPLE}.")
    if Path(name).name != name:
        raise ValueError(f"FROM = {name!r} must be the name of a run in {parameters.RESULTS}.")
    if not new:
        raise ValueError(f"RUN: name the new run, as in {EXAMPLE}.")
    if new == name:
        raise ValueError(
            f"RUN = {new!r} is the run that FROM names, and its answers are kept. Choose another "
            "RUN."
        )
    source = Run(parameters.RESULTS, name)
    run = Run(parameters.RESULTS, new, parameters.FIGURES)
    _require_models(source)
    _require_free(run, source)
    return source, run


def _require_models(source: Run) -> None:
    """Refuse a run that does not exist, or whose trained models are not in its folder."""
    if not source.path("run.json").exists():
        raise ValueError(f"FROM: {source.folder} is no run, since it has no run.json.")
    if source.record.imported:
        raise ValueError(
            f"FROM: {source.folder} contains imported results and no models, so nothing can answer "
            "again."
        )
    places = [model.place for model in source.models if model.place]
    if not places:
        raise ValueError(
            f"FROM: {source.folder} has no trained models. Run main.ipynb with RUN = "
            f"{source.name!r} first."
        )
    for place in places:
        if not source.path(place).exists():
            raise ValueError(
                f"FROM: {source.path(place)} is missing, so this model cannot answer again. "
                "Restore it, or train the run again. (Runs of the repository come without their "
                "models.)"
            )
        source.require_whole(place)


def _require_free(run: Run, source: Run) -> None:
    """Refuse a run that exists already, unless it has the models of `source`."""
    if not run.path("run.json").exists():
        if run.folder.exists() and any(run.folder.iterdir()):
            raise ValueError(f"RUN: {run.folder} contains other files. Choose another RUN.")
        return
    origin = run.record.copied.get("from")
    if origin is None:
        raise ValueError(f"RUN: {run.folder} is already a run. Choose another RUN.")
    if origin != source.name:
        raise ValueError(
            f"RUN: {run.folder} contains the models of the run {origin}, not those of "
            f"{source.name}. Choose another RUN."
        )
    if _describe_models(run) != _describe_models(source):
        raise ValueError(
            f"RUN: {run.folder} contains other models than {source.folder} has now. Choose another "
            "RUN."
        )


def _describe_models(run: Run) -> tuple[list[Model], dict[str, Artifact]]:
    """Collect a run's models, and the records of those that were trained."""
    artifacts = run.record.artifacts
    return run.models, {model.place: artifacts[model.place] for model in run.models if model.place}


@decided_by_main
def copy_models(source: Run, run: Run) -> None:
    """Copy the trained models of a run, its record of them and its log into a new run.

    The new run exists completely or not at all. A run that has been copied already is left alone.

    Args:
        source: the run whose models are copied.
        run: the new run, as `open_runs` returns it.

    Raises:
        RuntimeError: if another process is writing into `source`, such as a training.
    """
    if run.path("run.json").exists():
        return
    with source.hold():
        models, artifacts = _describe_models(source)
        record = source.record
        new = Record(
            run=run.name,
            preset=record.preset,
            settings={"training": record.settings.get("training", {})},
            models=models,
            sources=record.sources,
            data=record.data,
            artifacts=artifacts,
            copied={
                "from": source.name,
                "trained in": record.copied.get("trained in", source.name),
                "what": "the trained models; nothing was trained in this run",
            },
        )
        with written_whole(run.folder) as folder:
            for place in artifacts:
                shutil.copytree(source.path(place), folder / place)
            if source.path("training.json").exists():
                shutil.copy2(source.path("training.json"), folder / "training.json")
            write(folder / "run.json", new.model_dump())


def complete(parameters: Parameters, source: Run) -> Parameters:
    """Add to what is asked for everything else in which a run's evaluation differs from its preset.

    The new evaluation then differs from that of the run in nothing but what is named.

    Args:
        parameters: the parameters of the command line.
        source: the run whose models are asked again.

    Returns:
        The parameters, with the preset and the dataset of the run's evaluation, and with the
        settings that were changed for it.

    Raises:
        ValueError: if what is named is no setting of the evaluation.
    """
    record = source.record
    evaluated = record.settings.get("evaluation", {})
    trained = record.settings.get("training", {})
    named = _collect_named(parameters)
    preset = evaluated.get("preset") or record.preset
    if parameters.PRESET != "auto":
        preset = settings.resolve(parameters.PRESET)
    changes = {"PRESET": preset, "SETTINGS": dict(parameters.SETTINGS)}
    if "dataset" not in named:
        changes["DATASET"] = evaluated.get("dataset") or trained.get("dataset")
    kept = _list_changes(evaluated)
    contradicted = list_contradicted(named, kept)
    for name, value in kept.items():
        if name in named or name == "dataset":
            continue
        if name in contradicted:
            print(
                f"Unlike in the evaluation of {source.name}: {name} is no longer {value!r}, which "
                "contradicts what is named now."
            )
            continue
        print(f"As in the evaluation of {source.name}: {name} = {value!r}.")
        if name.upper() in Parameters.model_fields:
            changes[name.upper()] = value
        else:
            changes["SETTINGS"][name] = value
    return parameters.model_copy(update=changes)


def _collect_named(parameters: Parameters) -> dict[str, Any]:
    """Collect the settings that are named, and refuse those that are none of the evaluation."""
    known = [name for name in settings.Evaluation.model_fields if name != "preset"]
    of_training = [name for name in settings.Training.model_fields if name != "preset"]
    named = dict(parameters.SETTINGS)
    others = [name for name in named if name not in known]
    for parameter, value in parameters.given().items():
        name = parameter.lower()
        if name in known:
            named[name] = value
        elif name in of_training and name != "base_model":  # it says where the base lies now
            others.append(name)
    for name in others:
        if name in of_training:
            raise ValueError(
                f"{name} is a setting of the training, and this command trains nothing. Change it "
                "in a new run, with make run."
            )
        raise ValueError(
            f"SETTINGS: the evaluation has no setting {name}. Its settings are {', '.join(known)}."
        )
    return named


def _list_changes(evaluated: dict[str, Any]) -> dict[str, Any]:
    """List the settings in which an evaluation differs from its preset and protocol."""
    if not evaluated:
        return {}
    preset, protocol = evaluated["preset"], evaluated["protocol"]
    changes = {}
    if protocol != settings.choose(settings.Evaluation, preset).protocol:
        changes["protocol"] = protocol
    usual = settings.choose(settings.Evaluation, preset, {"protocol": protocol})
    for name, value in usual.model_dump(mode="json").items():
        if evaluated.get(name, value) != value:
            changes[name] = evaluated[name]
    return changes


def require_change(evaluation: settings.Evaluation, source: Run) -> None:
    """Refuse to ask a run's models again in the very way in which they were asked.

    Args:
        evaluation: the settings of the new evaluation.
        source: the run whose models are asked again.

    Raises:
        ValueError: if no setting differs from the evaluation of `source`.
    """
    before = source.record.settings.get("evaluation", {})
    now = evaluation.model_dump(mode="json", exclude={"preset"})
    if before and all(before.get(name, value) == value for name, value in now.items()):
        raise ValueError(
            f"Nothing that is named differs from the evaluation of {source.name}, so the answers "
            f"would be the same. Name what is to be changed, as in {EXAMPLE}."
        )


def choose_training(parameters: Parameters, source: Run) -> settings.Training:
    """Choose the settings of a run's training that the check of its base depends on.

    Args:
        parameters: the parameters of the command line; BASE_MODEL says where a base lies that has
            moved.
        source: the run whose models are asked again.

    Returns:
        The settings, of which all others have their presets' values.
    """
    trained = source.record.settings.get("training", {})
    checked = ("base_model", "format", "max_length", "dropout")
    values = {name: trained[name] for name in checked if name in trained}
    if parameters.BASE_MODEL:
        values["base_model"] = parameters.BASE_MODEL
    return settings.choose(settings.Training, source.record.preset or "full", values)
