"""Refresh what is committed of results: the notebooks' outputs and the runs `example` and `published`.

Both notebooks are executed in place, as one demo run named `example`, and the published rewards are measured once more.
The run's name and preset stand in the parameters cell only while it executes, so that a reader who opens a notebook
finds the defaults. The notebooks are not touched where a cell fails.
"""

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = {'PRESET = "auto"': 'PRESET = "demo"', "RUN = None": 'RUN = "example"'}
PUBLISHED = {"RUN = None": 'RUN = "published"'}
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar, dead once the run is over


def execute(path, parameters):
    """Return the notebook in `path` with the outputs of one run of all its cells, under {line: line instead}."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    source = cell.source
    for default, value in parameters.items():
        if default not in cell.source:
            raise ValueError(f"{path}: the parameters cell has no line that begins with {default!r}.")
        cell.source = cell.source.replace(default, value)
    NotebookClient(notebook, resources={"metadata": {"path": REPOSITORY}}, coalesce_streams=True).execute()
    cell.source = source
    return notebook


def tidy(notebook):
    """Drop what only mattered while the run went on: progress bars, libraries' warnings and the cells' times."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs
                            if WIDGET not in output.get("data", {}) and output.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    return notebook


def main():
    """Start the run `example` from nothing, execute both notebooks and write them back with their outputs."""
    for parent in ("results", "figures"):
        shutil.rmtree(REPOSITORY / parent / "example", ignore_errors=True)
    executed = {path: execute(path, EXAMPLE) for path in (REPOSITORY / "main.ipynb", REPOSITORY / "eval.ipynb")}
    execute(REPOSITORY / "eval.ipynb", PUBLISHED)
    for path, notebook in executed.items():
        nbformat.write(tidy(notebook), path)


if __name__ == "__main__":
    main()
