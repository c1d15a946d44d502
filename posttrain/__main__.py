"""Execute the notebooks with these parameters, as `make run`, `make seeds` and `make rejudge` do, or show a run.

    python -m posttrain [NAME=VALUE | NAME ...]              both notebooks
    python -m posttrain seeds SEEDS="0 1 2" [NAME=VALUE ...]  both, for each of these seeds of the training
    python -m posttrain rejudge FROM=published [NAME=VALUE ...]  a run's responses, cut at a human turn, judged again
    python -m posttrain report RUN=name [RESULTS=folder]  the page of a run, results/<run>/report.html

A NAME alone takes its value from the environment, as make hands it on. Names of things are read as texts, all other
values as Python. Both executed notebooks go into the run's folder, beside what they write.
"""

import ast
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from posttrain.checks import HUMAN
from posttrain.files import read_json, write
from posttrain.presets import Evaluation, Training, choose, resolve
from posttrain.report import write_page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("main.ipynb", "eval.ipynb")
KEPT = ("example", "published", "real-model")  # the runs that are committed
TEXTS = ("PRESET", "RUN", "DATASET", "BASE_MODEL", "REWARD_MODEL", "PROTOCOL", "REPORT_TO", "RESULTS", "FIGURES",
         "SEEDS", "SEED_RUNS", "FROM")
SWITCHES = ("FRESH", "LABEL")
NOISE = re.compile(r"(Executing|Ending) Cell|it/s\]|examples/s\]|step/s\]|\|\s+0/\d+|^<(pandas|Figure|IPython)|^\s*$")


def parameters_of(notebook: str) -> dict[str, object]:
    """Return the names that a notebook's cell tagged `parameters` sets, and their values there."""
    (cell,) = (c for c in nbformat.read(ROOT / notebook, 4).cells if "parameters" in c.metadata.get("tags", []))
    return {target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body for target in node.targets}


def read_value(name: str, text: str) -> object:
    """Return a parameter's value. Raises ValueError for what is no number, True, False, None or table where one is due.

    A run may be called 2025_01_15, and `false` is not False but a mistake.
    """
    if name in TEXTS:
        return None if text in ("", "None") else text
    try:
        value = ast.literal_eval(text)
        if name in SWITCHES and not isinstance(value, bool):
            raise ValueError
        return value
    except (SyntaxError, ValueError):
        raise ValueError(f"{name} = {text!r} is no value that it takes. Write a number, True, False or None, or for "
                         "SETTINGS a table such as '{\"beta\": 0.2}'.") from None


def own_settings(settings: object, notebook: str) -> dict[str, object]:
    """Return those of SETTINGS that a notebook knows. Raises ValueError for one that none knows."""
    kinds = {"main.ipynb": Training, "eval.ipynb": Evaluation}
    known = {name for kind in kinds.values() for name in kind.model_fields if name != "preset"}
    if not isinstance(settings, dict) or (unknown := set(settings) - known):
        what = "it must be a table"
        if isinstance(settings, dict):
            what = f"{', '.join(sorted(map(str, unknown)))} is no setting"
        raise ValueError(f"SETTINGS = {settings!r}: {what}. There are {sorted(known)}.")
    return {name: value for name, value in settings.items() if name in kinds[notebook].model_fields}


def read_arguments(arguments: list[str], more: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the parameters, those of the notebooks and `more`. Raises ValueError for one that there is not."""
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        given[name] = value if equals else os.environ.get(name, "")
    known = set(more).union(*map(parameters_of, NOTEBOOKS))
    if unknown := sorted(set(given) - known):
        raise ValueError(f"No parameter {', '.join(unknown)}. There are {', '.join(sorted(known))}.\n\n{__doc__}")
    return {name: read_value(name, value) for name, value in given.items()}


def execute(notebook: str, folder: Path, given: dict[str, object]) -> None:
    """Execute a notebook with the parameters that it has, into the run's folder. Raises RuntimeError if it stops.

    One that stops does not take the place of an earlier one that went through.
    """
    own = {name: value for name, value in given.items() if name in parameters_of(notebook)}
    own["SETTINGS"] = own_settings(given.get("SETTINGS", {}), notebook)
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / notebook.replace(".ipynb", "-stopped.ipynb")
    try:
        papermill.execute_notebook(ROOT / notebook, begun, own, kernel_name="python3", cwd=Path.cwd(), log_output=True,
                                   progress_bar=False)
    except PapermillExecutionError as error:
        raise RuntimeError(f"\n{notebook} stopped: {error.ename}: {error.evalue}\nThe whole of it is in {begun}.") \
            from None
    begun.replace(folder / notebook)


def folder_of(given: dict[str, object], run: str) -> Path:
    """Return the folder of a run. Raises ValueError for a path, and for a name that is kept with the repository."""
    if Path(run).name != run or run == "..":
        raise ValueError(f"RUN={run}: it must be the plain name of a folder under RESULTS.")
    if run in KEPT:
        raise ValueError(f"RUN={run} is kept with the repository. Choose another name.")
    return Path(given.get("RESULTS") or "results") / run


def begin(given: dict[str, object]) -> None:
    """Settle the preset, check the settings and build the stand-ins if they are what runs."""
    given["PRESET"] = resolve(given.get("PRESET") or "auto")
    given["RUN"] = given.get("RUN") or given["PRESET"]
    folder_of(given, given["RUN"])
    for notebook, kind in zip(NOTEBOOKS, (Training, Evaluation)):  # a mistake in the evaluation is said before training
        parameters = {name: given.get(name, value) for name, value in parameters_of(notebook).items()
                      if name.lower() in kind.model_fields and name != "PRESET"}
        choose(kind, given["PRESET"], own_settings(given.get("SETTINGS", {}), notebook), **parameters)
    if given["PRESET"] == "demo":
        subprocess.run([sys.executable, ROOT / "demo" / "build.py"], check=True)


def run_both(arguments: list[str]) -> None:
    """Train and evaluate one run, and print its final table."""
    given = read_arguments(arguments)
    begin(given)
    folder = folder_of(given, given["RUN"])
    for notebook in NOTEBOOKS:
        execute(notebook, folder, given)
    print((folder / "summary.md").read_text(encoding="utf-8"))
    print(f"Tables and records: {folder}   executed notebooks: {folder}/main.ipynb and eval.ipynb\n"
          f"A page with every answer, to open with a double-click: {folder}/report.html")


def run_seeds(arguments: list[str]) -> None:
    """Train and evaluate a run a seed: main.ipynb with it, eval.ipynb with the prompts of all. The last shows them."""
    given = read_arguments(arguments, ("SEEDS",))
    seeds = str(given.pop("SEEDS", "")).split()
    if len(set(seeds)) < max(2, len(seeds)) or not all(seed.isdigit() for seed in seeds):
        raise ValueError('SEEDS: two or more seeds are needed, each once, such as SEEDS="0 1 2".')
    if "SEED" in given:
        raise ValueError("SEED is the training's here, and SEEDS names them all.")
    begin(given)
    runs = {seed: f"{given['RUN']}-seed{seed}" for seed in seeds}
    for seed, name in runs.items():
        one = given | {"RUN": name, "SEED_RUNS": " ".join(runs.values())}
        execute("main.ipynb", folder_of(given, name), one | {"SEED": int(seed)})
        execute("eval.ipynb", folder_of(given, name), one)
    print(f"All seeds side by side: section 9 of {folder_of(given, name)}/eval.ipynb, `seeds` in its metrics.json.")


def rejudge(arguments: list[str]) -> None:
    """Cut the responses of a run where they open a human turn, and let a judge score them, as a run of its own."""
    given = read_arguments(arguments, ("FROM",))
    source = Path(given.get("RESULTS") or "results") / str(given.pop("FROM", "published"))
    given["RUN"] = given.get("RUN") or f"{source.name}-cut"
    folder = folder_of(given, given["RUN"])
    if missing := [name for name in ("prompts", "responses") if not (source / f"{name}.json").exists()]:
        raise ValueError(f"FROM: {source} has no {' and no '.join(missing)}.json. A run's texts are needed.")
    if (folder / "run.json").exists() or (folder / "scores.json").exists():
        raise ValueError(f"{folder} holds rewards or a run of its own. Choose another RUN for another judge, or remove "
                         "it to begin anew.")
    prompts, responses = (read_json(source / f"{name}.json", list[dict]) for name in ("prompts", "responses"))
    write(folder / "prompts.json", prompts)
    write(folder / "responses.json", [
        {name: response[name] for name in ("id", "model")} | {"response": response["response"].split(HUMAN)[0].strip()}
        for response in responses])
    execute("eval.ipynb", folder, given)
    print((folder / "summary.md").read_text(encoding="utf-8"))


def make_report(arguments: list[str]) -> None:
    """Write the page of a run from its files, however far the run has come."""
    given = read_arguments(arguments)
    if set(given) - {"RUN", "RESULTS"} or not given.get("RUN"):
        raise ValueError("make report takes RUN, the name of a run's folder, and RESULTS, where that folder lies: "
                         "make report RUN=demo")
    if Path(str(given["RUN"])).name != given["RUN"] or given["RUN"] == "..":
        raise ValueError(f"RUN={given['RUN']}: it must be the plain name of a folder under RESULTS.")
    page = write_page(Path(given.get("RESULTS") or "results") / given["RUN"])
    print(f"Open it with a double-click: {page}")


COMMANDS = {"seeds": run_seeds, "rejudge": rejudge, "report": make_report}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger().handlers[0].addFilter(lambda record: not NOISE.search(record.getMessage()))
    command, given = COMMANDS.get(" ".join(sys.argv[1:2])), sys.argv[1:]
    try:
        command(given[1:]) if command else run_both(given)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        sys.exit(str(error))
