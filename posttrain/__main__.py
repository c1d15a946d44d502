"""Execute the notebooks with parameters, and the other commands that `make` offers.

    python -m posttrain run [NAME=VALUE | NAME ...]
                        train a run's models and evaluate them
    python -m posttrain data HARMFUL=source HELPFUL=source OUT=folder
                        convert preference data into a folder that run takes as DATASET
    python -m posttrain seeds SEEDS="0 1 2" [NAME=VALUE ...]
                        train and evaluate one run per seed, then compare the runs
    python -m posttrain sweep SETTING=beta VALUES="0.03 0.1 0.3" [NAME=VALUE ...]
                        train and evaluate one run per value of a setting, then compare the runs
    python -m posttrain compare RUNS="one two" [RUN=name]
                        compare runs that have been evaluated
    python -m posttrain import FROM=folder [RUN=name]
                        make a run of prompts, responses and rewards from elsewhere
    python -m posttrain reask FROM=run RUN=new [PROTOCOL=paper] [NAME=VALUE ...]
                        copy a run's trained models, and let them answer in another way
    python -m posttrain rejudge FROM=published [NAME=VALUE ...]
                        cut a run's responses where they open a human turn, and judge them again
    python -m posttrain report RUN=name
                        write the page of a run again
    python -m posttrain votes RUN=name VOTES=file
                        count the votes that a person gave on the page of a run
    python -m posttrain chat RUN=name [KEEP=True]
                        ask all models of a run one's own questions, read from standard input
    python -m posttrain merge RUN=name MODEL="SFT+DPO" OUT=folder
                        write a model with its adapter merged into the base
    python -m posttrain push RUN=name TO=user/name [PUBLIC=True] [FORCE=True]
                        send a finished run to the hub, to a private repository unless PUBLIC=True

A NAME without a value is read from the environment, where make puts the values that it is given.
PROCESSES=2 shares the work of run, seeds, sweep, reask and rejudge among two processes, each of
which has a GPU of its own.
"""

import os
import re
import sys
from pathlib import Path

from posttrain import processes, settings
from posttrain.launching import launch
from posttrain.notebooks import execute
from posttrain.parameters import Parameters, read_parameters
from posttrain.preparation import (
    COMPARE,
    EVAL,
    MAIN,
    choose_settings,
    plan_evaluation,
    prepare,
    require_fitting_sources,
    require_own_name,
)
from posttrain.processes import decided_by_main, on_main
from posttrain.run import Run


@decided_by_main
def print_summary(folder: Path) -> None:
    """Print the final table of a run, without the backslashes that markdown needs."""
    text = (folder / "summary.md").read_text(encoding="utf-8")
    print(re.sub(r"\\(.)", r"\1", text))


def run_both(parameters: Parameters) -> None:
    """Train and evaluate a run, and print its final table."""
    prepared = on_main(prepare, parameters)
    run = Run(prepared.RESULTS, prepared.RUN)
    execute(MAIN, run.folder, prepared.given() | {"EVALUATION": plan_evaluation(prepared)})
    execute(EVAL, run.folder, prepared.given())
    print_summary(run.folder)
    made = "The tables, the records and both executed notebooks"
    if processes.count() > 1:
        made = "The tables and the records"
    print(f"{made} are in {run.folder}.")
    print(f"Double-click {run.folder}/report.html to open a page with every answer.")


def convert_data(parameters: Parameters) -> None:
    """Convert preference data of other formats into a folder in HH-RLHF's layout."""
    from posttrain.converting import convert, tabulate_report

    sources = {"harmful": parameters.HARMFUL, "helpful": parameters.HELPFUL}
    sources = {kind: source for kind, source in sources.items() if source is not None}
    if not sources or not parameters.OUT:
        raise ValueError(
            "HARMFUL, HELPFUL, OUT: name at least one source of preference pairs and a new folder, "
            "as in make data HARMFUL=my/dataset HELPFUL=pairs.parquet OUT=mydata."
        )
    report = convert(sources, Path(parameters.OUT))
    for kind, part in report["kinds"].items():
        print(f"{kind}: {part['source']} ({part['version']})")
        for split, origin in part["splits"].items():
            print(f"  {split} split: {origin}")
    print(f"\n{tabulate_report(report).to_string()}\n")
    print(f"The pairs are in {parameters.OUT}. Train on them: make run DATASET={parameters.OUT}")


def run_seeds(parameters: Parameters) -> None:
    """Train and evaluate one run per seed of the training, then compare the runs."""
    seeds = (parameters.SEEDS or "").split()
    are_numbers = all(seed.isdecimal() for seed in seeds)
    distinct = are_numbers and len({int(seed) for seed in seeds}) == len(seeds) >= 2
    if not distinct:
        raise ValueError('SEEDS: give two or more seeds, each once, such as SEEDS="0 1 2".')
    if parameters.SEED is not None:
        raise ValueError("SEED: this command takes the training seeds from SEEDS. Leave SEED out.")
    if "seed" in parameters.SETTINGS:
        raise ValueError(
            "SETTINGS: this command takes the training seeds from SEEDS. Leave seed out of "
            "SETTINGS."
        )
    if parameters.SETTING or parameters.VALUES:
        raise ValueError("SETTING and VALUES: use them with make sweep, or SEEDS with make seeds.")
    values = " ".join(str(int(seed)) for seed in seeds)
    run_sweep(parameters.model_copy(update={"SETTING": "seed", "VALUES": values, "SEEDS": None}))


def run_sweep(parameters: Parameters) -> None:
    """Train and evaluate one run per value of a setting of the training, then compare the runs."""
    from posttrain import sweeps

    if parameters.SEEDS:
        raise ValueError("SEEDS: use it with make seeds, or SETTING=seed VALUES=... with this one.")
    values = sweeps.read_values(parameters)
    preset = settings.resolve(parameters.PRESET)
    name, setting = parameters.RUN or preset, parameters.SETTING
    require_own_name(name, parameters.RESULTS)
    if len(name.split()) > 1:
        raise ValueError(
            f"RUN = {name!r} has a blank, but the runs will be compared by their names with blanks "
            "between them. Choose a RUN without blanks."
        )
    chosen = {"PRESET": preset, "RUN": name}
    trainings = []
    for value in values:  # every value is checked before anything is trained with one
        chosen["RUN"] = sweeps.name_run(name, setting, value)
        chosen["SETTINGS"] = parameters.SETTINGS | {setting: value}
        trainings.append(on_main(prepare, parameters.model_copy(update=chosen)))
    for training in trainings:
        run = Run(training.RESULTS, training.RUN)
        execute(MAIN, run.folder, training.given() | {"EVALUATION": plan_evaluation(parameters)})
        # The evaluation stays the same, its seed and prompts included.
        execute(EVAL, run.folder, training.given() | {"SETTINGS": parameters.SETTINGS})
    runs = " ".join(training.RUN for training in trainings)
    changes = {"RUNS": runs, "RUN": sweeps.name_comparison(name, setting)}
    on_main(compare_runs, parameters.model_copy(update=changes))


def compare_runs(parameters: Parameters) -> None:
    """Compare evaluated runs that differ in one setting."""
    if not parameters.RUNS:
        raise ValueError('RUNS: name the runs to compare, such as RUNS="quick-seed0 quick-seed1".')
    name = parameters.RUN or f"{parameters.RUNS.split()[0]}-compared"
    require_own_name(name, parameters.RESULTS)
    folder = Run(parameters.RESULTS, name).folder
    execute(COMPARE, folder, parameters.given() | {"RUN": name})
    if processes.count() == 1:
        print(f"The comparison is {folder / COMPARE}.")
    else:
        print(f"Several processes leave no executed {COMPARE}. Open it, or use make compare.")
    print("Its figures lie beside those of the runs.")


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
    if not run.is_there("run.json"):
        import_results(source, run, cut_at_turn=True)
    elif not run.record.imported:
        raise ValueError(f"{run.folder} is a run that was trained here. Choose another RUN.")
    elif not on_main(holds_texts_of, run, source, cut_at_turn=True):
        raise ValueError(
            f"{run.folder} was made from other prompts, human replies or responses than {source} "
            "has now. Choose another RUN."
        )
    execute(EVAL, run.folder, parameters.given() | {"RUN": name})
    print_summary(run.folder)


def reask(parameters: Parameters) -> None:
    """Copy a run's trained models into a new run, and let them answer in another way there."""
    asked, source, run = on_main(_prepare_asking, parameters)
    execute(EVAL, run.folder, asked.given())
    print_summary(run.folder)
    print(f"The models of {source.folder} were asked again. The results are in {run.folder}.")


def _prepare_asking(parameters: Parameters) -> tuple[Parameters, Run, Run]:
    """Check how a run's models are to be asked again, and copy them into a new run.

    Returns:
        The parameters of eval.ipynb, the run that has the models, and the new run.
    """
    from posttrain import reasking

    if parameters.RUN:
        require_own_name(parameters.RUN, parameters.RESULTS)
    source, run = reasking.open_runs(parameters)
    asked = reasking.complete(parameters, source)
    training = reasking.choose_training(asked, source)
    evaluation = choose_settings(EVAL, asked)
    reasking.require_change(evaluation, source)
    require_fitting_sources(asked, training, evaluation, source)
    reasking.copy_models(source, run)
    return asked, source, run


def report(parameters: Parameters) -> None:
    """Write the page of a run, report.html, from the files that the run has so far."""
    from posttrain.page import write_page

    if not parameters.RUN:
        raise ValueError("RUN: name the run whose page is to be made, as in make report RUN=demo.")
    page = write_page(Run(parameters.RESULTS, parameters.RUN).folder)
    print(f"Double-click {page} to open the page.")


def count_votes(parameters: Parameters) -> None:
    """Count a person's votes on the answers of a run, and compare them with the judge's rewards."""
    from posttrain.votes import RESULT, describe_votes, write_votes

    if not parameters.RUN or not parameters.VOTES:
        raise ValueError(
            "RUN, VOTES: name the run and the file of votes that its page has saved, as in "
            "make votes RUN=demo VOTES=demo-votes.json."
        )
    folder = Run(parameters.RESULTS, parameters.RUN).folder
    result = write_votes(Path(parameters.VOTES), folder)
    print("\n".join(describe_votes(result)))
    print(f"All numbers are in {folder / RESULT}.")


def chat(parameters: Parameters) -> None:
    """Ask all models of a run the questions that are typed or piped in; KEEP=True keeps them."""
    from posttrain.dialogue import open_dialogue
    from posttrain.dialogue_terminal import talk

    if not parameters.RUN:
        raise ValueError("RUN: name the run whose models are asked, as in make chat RUN=demo.")
    run = Run(parameters.RESULTS, parameters.RUN, must_exist=True)
    talk(open_dialogue(run), bool(parameters.KEEP))


def merge_model(parameters: Parameters) -> None:
    """Merge the adapter of a run's model into its base, and save the plain model in a folder."""
    from posttrain.merging import merge

    if not parameters.RUN or not parameters.MODEL or not parameters.OUT:
        raise ValueError(
            "RUN, MODEL, OUT: name a run, one of its models and a new folder, as in "
            "make merge RUN=quick MODEL=DPO OUT=merged."
        )
    run = Run(parameters.RESULTS, parameters.RUN, must_exist=True)
    difference = merge(run, parameters.MODEL, parameters.OUT, parameters.BASE_MODEL)
    print(
        f"The model is in {parameters.OUT}, with its tokenizer and its card, README.md. Its logits "
        f"differ from those of the adapter over its base by {difference:.1g} at most."
    )


def push_run(parameters: Parameters) -> None:
    """Send a finished run's models, cards, metrics and page to the Hugging Face hub."""
    from posttrain.pushing import push

    if not parameters.RUN or not parameters.TO:
        raise ValueError(
            "RUN, TO: name a run and a repository on the hub, as in "
            "make push RUN=quick TO=user/name."
        )
    run = Run(parameters.RESULTS, parameters.RUN, must_exist=True)
    address = push(run, parameters.TO, bool(parameters.PUBLIC), bool(parameters.FORCE))
    print(f"The run is at {address}.")


COMMANDS = {
    "run": run_both,
    "data": convert_data,
    "seeds": run_seeds,
    "sweep": run_sweep,
    "compare": compare_runs,
    "import": import_run,
    "reask": reask,
    "rejudge": rejudge,
    "report": report,
    "votes": count_votes,
    "chat": chat,
    "merge": merge_model,
    "push": push_run,
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
    processes.quiet_others()
    try:
        parameters = read_parameters(rest)
        if parameters.PROCESS_TIMEOUT is not None:
            os.environ[processes.TIMEOUT] = str(parameters.PROCESS_TIMEOUT)
        if (parameters.PROCESSES or 1) > 1 and "WORLD_SIZE" not in os.environ:
            launch(name, rest, parameters)
            return
        processes.require_replicas()
        processes.require_number(parameters.PROCESSES)
        COMMANDS[name](parameters)
        processes.end()
    except (ValueError, RuntimeError, OSError) as error:
        processes.stop(error)
    except Exception as error:
        if processes.count() == 1:
            raise
        processes.stop(error)


if __name__ == "__main__":
    main(sys.argv[1:])
