"""Execute the notebooks with parameters, and the other commands that `make` offers.

    python -m posttrain run [NAME=VALUE | NAME ...]
                        train a run's models and evaluate them
    python -m posttrain seeds SEEDS="0 1 2" [NAME=VALUE ...]
                        train and evaluate one run per seed, then compare the runs
    python -m posttrain compare RUNS="one two" [RUN=name]
                        compare runs that have been evaluated
    python -m posttrain import FROM=folder [RUN=name]
                        make a run of prompts, responses and rewards from elsewhere
    python -m posttrain rejudge FROM=published [NAME=VALUE ...]
                        cut a run's responses where they open a human turn, and judge them again
    python -m posttrain report RUN=name
                        write the page of a run again

A NAME without a value is read from the environment, where make puts the values that it is given.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

from posttrain import settings
from posttrain.parameters import Parameters, read_parameters
from posttrain.run import Run

ROOT = Path(__file__).resolve().parent.parent
MAIN, EVAL, COMPARE = "main.ipynb", "eval.ipynb", "compare.ipynb"
COMMITTED = ("example", "published", "real-model")  # runs in the repository, never written into


# ---- notebooks


def execute(notebook: str, folder: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook, print what its cells print, and save it in a run's folder.

    A notebook that stops is saved as `*-stopped.ipynb`. It does not replace an earlier one that
    ran to its end.

    Args:
        notebook: the file name of a notebook in the repository's root.
        folder: the run's folder.
        parameters: {name: value}; parameters that the notebook does not have are left out.

    Raises:
        RuntimeError: if a cell fails. The message has the cell's error and the notebook's path.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    known = papermill.inspect_notebook(str(ROOT / notebook))
    passed = {name: value for name, value in parameters.items() if name in known}
    if "SETTINGS" in passed:
        passed["SETTINGS"] = _settings_of(notebook, passed["SETTINGS"])
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / notebook.replace(".ipynb", "-stopped.ipynb")
    try:
        papermill.execute_notebook(
            str(ROOT / notebook),
            str(unfinished),
            passed,
            kernel_name="python3",
            cwd=str(Path.cwd()),
            progress_bar=False,
            stdout_file=sys.stdout,
            # Without this the kernel warns about a port that only this machine can see.
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"{notebook} stopped: {error.ename}: {error.evalue}\nThe notebook with all its outputs "
            f"is {unfinished}."
        ) from None
    unfinished.replace(folder / notebook)


def _settings_of(notebook: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Select from SETTINGS those that a notebook has."""
    kind = settings.Training if notebook == MAIN else settings.Evaluation
    return {name: value for name, value in changes.items() if name in kind.model_fields}


# ---- what is checked before anything is trained


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
    chosen = {}
    for notebook, kind in ((MAIN, settings.Training), (EVAL, settings.Evaluation)):
        values = {
            name: value
            for name, value in prepared.given().items()
            if name.lower() in kind.model_fields and name != "PRESET"
        }
        choose = settings.training if notebook == MAIN else settings.evaluation
        chosen[notebook] = choose(preset, _settings_of(notebook, prepared.SETTINGS), **values)
    _require_fitting_sources(prepared, chosen[MAIN], chosen[EVAL])
    return prepared


def _require_fitting_sources(
    parameters: Parameters, training: settings.Training, evaluation: settings.Evaluation
) -> None:
    """Refuse a judge or a base that does not work, too many prompts, and answers that are too long.

    A run that has been judged is not checked, since it may be read where its sources are missing.
    """
    run = Run(parameters.RESULTS, parameters.RUN)
    if run.path("scores.json").exists() and not parameters.FRESH:
        return
    from posttrain import data, generation, hub, judging, models

    commits = {}  # a run keeps the commits that it began with
    if not parameters.FRESH:
        for source in run.record.sources.values():
            commits[source["name"]] = source["commit"]
    name = evaluation.reward_model
    judge = hub.fetch("REWARD_MODEL", name, commit=commits.get(name))
    judging.try_judge(judge, evaluation.judge_length)
    name = training.base_model
    base = hub.fetch("BASE_MODEL", name, commit=commits.get(name))
    models.require_base(base, training.max_length)
    name = evaluation.dataset
    files = data.list_files("base", ["test"])
    dataset = hub.fetch("DATASET", name, files, commits.get(name))
    room = generation.room_for_prompt(base, evaluation.max_new_tokens)
    tokenizer = models.load_tokenizer(base)
    counts = data.count_prompts(dataset, evaluation.protocol, tokenizer, room)
    data.require_prompts(parameters.N_PROMPTS, counts, dataset)


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


# ---- the commands


def print_summary(folder: Path) -> None:
    """Print the final table of a run, without the backslashes that markdown needs."""
    text = (folder / "summary.md").read_text(encoding="utf-8")
    print(re.sub(r"\\(.)", r"\1", text))


def run_both(parameters: Parameters) -> None:
    """Train and evaluate a run, and print its final table."""
    prepared = prepare(parameters)
    run = Run(prepared.RESULTS, prepared.RUN)
    for notebook in (MAIN, EVAL):
        execute(notebook, run.folder, prepared.given())
    print_summary(run.folder)
    print(f"The tables, the records and both executed notebooks are in {run.folder}.")
    print(f"Double-click {run.folder}/report.html to open a page with every answer.")


def run_seeds(parameters: Parameters) -> None:
    """Train and evaluate one run per seed of the training, then compare the runs."""
    seeds = (parameters.SEEDS or "").split()
    are_numbers = all(seed.isdigit() for seed in seeds)
    distinct = are_numbers and len({int(seed) for seed in seeds}) == len(seeds) >= 2
    if not distinct:
        raise ValueError('SEEDS: give two or more seeds, each once, such as SEEDS="0 1 2".')
    if parameters.SEED is not None:
        raise ValueError("SEED: this command takes the training seeds from SEEDS. Leave SEED out.")
    prepared = prepare(parameters)
    names = [f"{prepared.RUN}-seed{seed}" for seed in seeds]
    for seed, name in zip(seeds, names):
        run = Run(prepared.RESULTS, name)
        given = prepared.given() | {"RUN": name}
        execute(MAIN, run.folder, given | {"SEED": int(seed)})
        execute(EVAL, run.folder, given)  # its seed stays the same, and so do the prompts
    changes = {"RUNS": " ".join(names), "RUN": f"{prepared.RUN}-seeds"}
    compare_runs(prepared.model_copy(update=changes))


def compare_runs(parameters: Parameters) -> None:
    """Compare evaluated runs that differ in one setting."""
    if not parameters.RUNS:
        raise ValueError('RUNS: name the runs to compare, such as RUNS="quick-seed0 quick-seed1".')
    name = parameters.RUN or f"{parameters.RUNS.split()[0]}-compared"
    require_own_name(name, parameters.RESULTS)
    folder = Run(parameters.RESULTS, name).folder
    execute(COMPARE, folder, parameters.given() | {"RUN": name})
    print(f"The comparison is {folder / COMPARE}. Its figures lie beside those of the runs.")


def import_run(parameters: Parameters) -> None:
    """Make a new run of prompts, responses and rewards from elsewhere."""
    from posttrain.importing import import_results

    if not parameters.FROM:
        raise ValueError("FROM: name the folder that holds prompts.json and responses.json.")
    source = Path(parameters.FROM)
    name = parameters.RUN or source.resolve().name
    require_own_name(name, parameters.RESULTS)
    run = Run(parameters.RESULTS, name)
    import_results(source, run)
    print(f"The results are now in {run.folder}. Run eval.ipynb with RUN = {name!r} to measure it.")


def rejudge(parameters: Parameters) -> None:
    """Cut a run's responses where they open a human turn, and judge them as a new run."""
    from posttrain.importing import holds_texts_of, import_results

    source = Path(parameters.RESULTS) / (parameters.FROM or "published")
    name = parameters.RUN or f"{source.name}-cut"
    require_own_name(name, parameters.RESULTS)
    run = Run(parameters.RESULTS, name)
    if not run.path("run.json").exists():
        import_results(source, run, cut_at_turn=True)
    elif not run.record.imported:
        raise ValueError(f"{run.folder} is a run that was trained here. Choose another RUN.")
    elif not holds_texts_of(run, source, cut_at_turn=True):
        raise ValueError(
            f"{run.folder} was made from other prompts, human replies or responses than {source} "
            "has now. Choose another RUN."
        )
    execute(EVAL, run.folder, parameters.given() | {"RUN": name})
    print_summary(run.folder)


def report(parameters: Parameters) -> None:
    """Write the page of a run, report.html, from the files that the run has so far."""
    from posttrain.page import write_page

    if not parameters.RUN:
        raise ValueError("RUN: name the run whose page is to be made, as in make report RUN=demo.")
    page = write_page(Run(parameters.RESULTS, parameters.RUN).folder)
    print(f"Double-click {page} to open the page.")


COMMANDS = {
    "run": run_both,
    "seeds": run_seeds,
    "compare": compare_runs,
    "import": import_run,
    "rejudge": rejudge,
    "report": report,
}


def main(arguments: list[str]) -> None:
    """Run the command named first with the parameters after it; without a command, print help."""
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar would print a new line for every step
    # A terminal or file that cannot represent a letter shows ? in its place.
    sys.stdout.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        sys.exit(f"There is no command {name}. The commands are {known}.\n\n{__doc__}")
    if "--help" in rest or "-h" in rest:
        print(f"{COMMANDS[name].__doc__}\n\n{__doc__}")
        return
    try:
        COMMANDS[name](read_parameters(rest))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
