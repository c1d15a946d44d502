"""Run both notebooks with these parameters, as `make run` does.

    python -m posttrain [NAME=VALUE | NAME ...]

A NAME alone takes its value from the environment, as make hands it on. A value is read as Python where it is a number,
None, True or False, else as text. Both executed notebooks go into the run's folder, beside what they write.
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

from posttrain.presets import resolve

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("example", "published")  # the runs that are committed
NOISE = re.compile(r"(Executing|Ending) Cell|it/s\]|examples/s\]|step/s\]|\|\s+0/\d+|^<(pandas|Figure|IPython)|^\s*$")


def parameters_of(notebook: Path) -> set[str]:
    """Return the names that a notebook's cell tagged `parameters` sets."""
    (cell,) = (c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", []))
    return {target.id for node in ast.parse(cell.source).body for target in node.targets}


def read_value(text: str) -> object:
    """Return a parameter's value: a number, None, True or False where the text is one, else the text."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def main(arguments: list[str]) -> str | int:
    """Run both notebooks; return what to exit with."""
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        given[name] = read_value(value if equals else os.environ.get(name, ""))
    known = {notebook: parameters_of(ROOT / notebook) for notebook in ("main.ipynb", "eval.ipynb")}
    if unknown := sorted(set(given) - set.union(*known.values())):
        return f"No parameter {', '.join(unknown)}. There are {', '.join(sorted(set.union(*known.values())))}."
    given["PRESET"] = resolve(given.get("PRESET", "auto"))
    given["RUN"] = str(given.get("RUN") or given["PRESET"])
    if given["RUN"] in KEPT:
        return f"RUN={given['RUN']} is kept with the repository. Choose another name."
    if given["PRESET"] == "demo":
        subprocess.run([sys.executable, ROOT / "demo" / "build.py"], check=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger().handlers[0].addFilter(lambda record: not NOISE.search(record.getMessage()))
    folder = Path(given.get("RESULTS", "results")) / given["RUN"]
    folder.mkdir(parents=True, exist_ok=True)
    for notebook, names in known.items():
        own = {name: value for name, value in given.items() if name in names}
        try:
            papermill.execute_notebook(ROOT / notebook, folder / notebook, own, kernel_name="python3", cwd=Path.cwd(),
                                       log_output=True, progress_bar=False)
        except PapermillExecutionError as error:
            return f"\n{notebook} stopped: {error.ename}: {error.evalue}\nThe whole of it is in {folder / notebook}."
    print((folder / "summary.md").read_text(encoding="utf-8"))
    print(f"Tables and records: {folder}   executed notebooks: {folder}/main.ipynb and eval.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
