"""What the command line settles and checks before anything is trained or asked."""

from pathlib import Path
from typing import Any

from posttrain import processes, settings
from posttrain.parameters import Parameters
from posttrain.run import Run

ROOT = Path(__file__).resolve().parent.parent
MAIN, EVAL, COMPARE = "main.ipynb", "eval.ipynb", "compare.ipynb"
# Settings of the evaluation on which the number of its prompts depends.
PLANNED_WITH = ("protocol", "n_prompts", "harmful_prompts", "keyword_rule", "max_new_tokens")
COMMITTED = ("example", "published", "real-model")  # runs in the repository, never written into


def select_settings(notebook: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Select from SETTINGS those that a notebook has.

    Args:
        notebook: MAIN or EVAL.
        changes: {setting: value} for both notebooks.
    """
    kind = settings.Training if notebook == MAIN else settings.Evaluation
    return {name: value for name, value in changes.items() if name in kind.model_fields}


def prepare(parameters: Parameters) -> Parameters:
    """Settle the preset and the run's name, and refuse whatever either notebook would refuse.

    Args:
        parameters: the parameters of the command line.

    Returns:
        The parameters, with PRESET and RUN filled in.

    Raises:
        ValueError: if a parameter or setting is wrong, or the dataset has too few prompts.
        RuntimeError: if the preset needs an accelerator and none is visible.
    """
    preset = settings.resolve(parameters.PRESET)
    prepared = parameters.model_copy(update={"PRESET": preset, "RUN": parameters.RUN or preset})
    require_own_name(prepared.RUN, prepared.RESULTS)
    if prepared.FRESH:
        Run(prepared.RESULTS, prepared.RUN, prepared.FIGURES).require_movable()
    known = settings.Training.model_fields.keys() | settings.Evaluation.model_fields.keys()
    unknown = sorted(name for name in prepared.SETTINGS if name not in known - {"preset"})
    if unknown:
        raise ValueError(
            f"SETTINGS: neither notebook has a setting {', '.join(unknown)}. The settings are "
            f"{', '.join(sorted(known - {'preset'}))}."
        )
    chosen = {notebook: choose_settings(notebook, prepared) for notebook in (MAIN, EVAL)}
    pairs, number = chosen[MAIN].batch_size, processes.count()
    if pairs % number:
        raise ValueError(
            f"{number} processes cannot share the {pairs} pairs of a step (batch_size) equally. "
            "Choose another number of PROCESSES."
        )
    require_fitting_sources(prepared, chosen[MAIN], chosen[EVAL])
    return prepared


def plan_evaluation(parameters: Parameters) -> dict[str, Any]:
    """Collect what main.ipynb needs as EVALUATION to plan with the prompts of eval.ipynb.

    Args:
        parameters: the parameters with which eval.ipynb will be executed.

    Returns:
        {setting: value} of those settings in PLANNED_WITH that are named.
    """
    named = {name.lower(): value for name, value in parameters.given().items()}
    named |= parameters.SETTINGS
    return {name: named[name] for name in PLANNED_WITH if name in named}


def choose_settings(notebook: str, parameters: Parameters) -> settings.Settings:
    """Choose the settings of a notebook from the parameters, as the notebook itself does.

    Args:
        notebook: MAIN or EVAL.
        parameters: the parameters of the command line, with PRESET filled in.

    Raises:
        ValueError: if a value is not allowed.
    """
    is_main = notebook == MAIN
    kind = settings.Training if is_main else settings.Evaluation
    choose = settings.training if is_main else settings.evaluation
    values = {}
    for name, value in parameters.given().items():
        if name.lower() in kind.model_fields and name != "PRESET":
            values[name] = value
    return choose(parameters.PRESET, select_settings(notebook, parameters.SETTINGS), **values)


def require_fitting_sources(
    parameters: Parameters,
    training: settings.Training,
    evaluation: settings.Evaluation,
    begun: Run | None = None,
) -> None:
    """Refuse a judge, base or dropout that does not work, too many prompts, and too long answers.

    A run that has been judged is not checked, since it may be read where its sources are missing.

    Args:
        parameters: the parameters of the command line, with RUN filled in.
        training: the settings of main.ipynb.
        evaluation: the settings of eval.ipynb.
        begun: the run whose commits are kept, where it is not the run itself.

    Raises:
        ValueError: if one of these does not fit.
    """
    run = Run(parameters.RESULTS, parameters.RUN)
    if run.path("scores.json").exists() and not parameters.FRESH:
        return
    from posttrain import architecture, data, hub, judging, models, planning, sources

    commits = {}  # a run keeps the commits that it began with
    if not parameters.FRESH:
        for source in (begun or run).record.sources.values():
            commits[source["name"]] = source["commit"]
    name = evaluation.reward_model
    judge = hub.fetch("REWARD_MODEL", name, commit=commits.get(name))
    second = evaluation.second_judge
    if second is not None:
        other = hub.fetch("SECOND_JUDGE", second, commit=commits.get(second))
        identities = [hub.identify(folder) for folder in (other, judge)]
        sources.require_another_judge(second, identities[0], name, identities[1])
        judging.try_judge(other, evaluation.judge_length, "SECOND_JUDGE")
    judging.try_judge(judge, evaluation.judge_length)
    name = training.base_model
    base = hub.fetch("BASE_MODEL", name, commit=commits.get(name))
    models.require_base(base, training.max_length, chat=training.format == "chat")
    # It refuses a rate for a base without dropout; the config itself is not kept.
    architecture.set_dropout(models.load_config(base), training.dropout)
    name = evaluation.dataset
    files = data.list_files("base", ["test"])
    dataset = hub.fetch("DATASET", name, files, commits.get(name))
    is_asked = "n_prompts" in plan_evaluation(parameters)  # and not by the preset alone
    planning.count_usable(training, evaluation, dataset, base, is_asked)


def require_own_name(run: str, results: str) -> None:
    """Refuse the name of a run that is part of the repository.

    Raises:
        ValueError: if the name is such a run's.
    """
    if run in COMMITTED and Path(results).resolve() == (ROOT / "results").resolve():
        raise ValueError(
            f"RUN = {run!r} is a run of the repository, which must not be overwritten. Choose "
            "another name."
        )
