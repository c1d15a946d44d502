"""Run both notebooks with these parameters, as `make run` does.

    python -m posttrain [NAME=VALUE | NAME ...]

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

from posttrain.presets import Evaluation, Training, resolve

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("example", "published")  # the runs that are committed
TEXTS = ("PRESET", "RUN", "DATASET", "BASE_MODEL", "REWARD_MODEL", "PROTOCOL", "REPORT_TO", "RESULTS", "FIGURES")
NOISE = re.compile(r"(Executing|Ending) Cell|it/s\]|examples/s\]|step/s\]|\|\s+0/\d+|^<(pandas|Figure|IPython)|^\s*$")


def parameters_of(notebook: Path) -> set[str]:
    """Return the names that a notebook's cell tagged `parameters` sets."""
    (cell,) = (c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", []))
    return {target.id for node in ast.parse(cell.source).body for target in node.targets}


def read_value(name: str, text: str) -> object:
    """Return a parameter's value. Raises ValueError for what is no number, True, False, None or table where one is due.

    A run may be called 2025_01_15, and `false` is not False but a mistake.
    """
    if name in TEXTS:
        return None if text in ("", "None") else text
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise ValueError(f"{name} = {text!r} is no value of Python's. Write a number, True, False or None, or for "
                         "SETTINGS a table such as '{\"beta\": 0.2}'.") from None


def own_settings(settings: object, notebook: str) -> dict[str, object]:
    """Return those of SETTINGS that a notebook knows. Raises ValueError for one that none knows."""
    kinds = {"main.ipynb": Training, "eval.ipynb": Evaluation}
    known = {name for kind in kinds.values() for name in kind.model_fields}
    if not isinstance(settings, dict) or not set(settings) <= known:
        raise ValueError(f"SETTINGS = {settings!r}: it must be a table of settings. There are {sorted(known)}.")
    return {name: value for name, value in settings.items() if name in kinds[notebook].model_fields}


def main(arguments: list[str]) -> str | int:
    """Run both notebooks; return what to exit with. Raises ValueError or RuntimeError for what cannot be run."""
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        given[name] = read_value(name, value if equals else os.environ.get(name, ""))
    known = {notebook: parameters_of(ROOT / notebook) for notebook in ("main.ipynb", "eval.ipynb")}
    if unknown := sorted(set(given) - set.union(*known.values())):
        return f"No parameter {', '.join(unknown)}. There are {', '.join(sorted(set.union(*known.values())))}."
    settings = {notebook: own_settings(given.get("SETTINGS", {}), notebook) for notebook in known}
    given["PRESET"] = resolve(given.get("PRESET") or "auto")
    given["RUN"] = given.get("RUN") or given["PRESET"]
    if given["RUN"] in KEPT:
        return f"RUN={given['RUN']} is kept with the repository. Choose another name."
    if given["PRESET"] == "demo":
        subprocess.run([sys.executable, ROOT / "demo" / "build.py"], check=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger().handlers[0].addFilter(lambda record: not NOISE.search(record.getMessage()))
    folder = Path(given.get("RESULTS") or "results") / given["RUN"]
    folder.mkdir(parents=True, exist_ok=True)
    for notebook, names in known.items():
        own = {name: value for name, value in given.items() if name in names} | {"SETTINGS": settings[notebook]}
        try:
            papermill.execute_notebook(ROOT / notebook, folder / notebook, own, kernel_name="python3", cwd=Path.cwd(),
                                       log_output=True, progress_bar=False)
        except PapermillExecutionError as error:
            return f"\n{notebook} stopped: {error.ename}: {error.evalue}\nThe whole of it is in {folder / notebook}."
    print((folder / "summary.md").read_text(encoding="utf-8"))
    print(f"Tables and records: {folder}   executed notebooks: {folder}/main.ipynb and eval.ipynb")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
