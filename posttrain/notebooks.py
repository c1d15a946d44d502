"""Execute a notebook with parameters: with papermill, or in each of several processes."""

import ast
import linecache
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain import processes
from posttrain.preparation import ROOT, select_settings

TAG = "parameters"  # of the cell that has a notebook's parameters


def execute(notebook: str, folder: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook, and print what its cells print.

    A single process leaves the executed notebook in the run's folder. One that stops is saved as
    `*-stopped.ipynb`, so that it does not replace an earlier one that ran to its end. Several
    processes leave no executed notebook, only the files that it makes.

    Args:
        notebook: the file name of a notebook in the repository's root.
        folder: the run's folder.
        parameters: {name: value}; parameters that the notebook does not have are left out.

    Raises:
        RuntimeError: if a cell fails. The message has the cell's error and where it is.
    """
    import papermill

    known = papermill.inspect_notebook(str(ROOT / notebook))
    passed = {name: value for name, value in parameters.items() if name in known}
    if "SETTINGS" in passed:
        passed["SETTINGS"] = select_settings(notebook, passed["SETTINGS"])
    if processes.count() > 1:
        _execute_cells(notebook, passed)
    else:
        _execute_in_kernel(notebook, folder, passed)


def _execute_in_kernel(notebook: str, folder: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook in a kernel of its own, and save it with its outputs."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / notebook.replace(".ipynb", "-stopped.ipynb")
    try:
        papermill.execute_notebook(
            str(ROOT / notebook),
            str(unfinished),
            parameters,
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


def _execute_cells(notebook: str, parameters: dict[str, Any]) -> None:
    """Execute a notebook's code cells in this process, which is one of several.

    Tables and figures are not shown, since there is no page to show them on.
    """
    import IPython.display
    import nbformat

    os.environ.setdefault("MPLBACKEND", "agg")
    IPython.display.display = _show_nothing
    namespace = {"__name__": "__main__"}  # that of a notebook's own functions and classes
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    codes = [cell for cell in cells if cell.cell_type == "code"]
    for number, cell in enumerate(codes, start=1):  # as Jupyter numbers them
        _execute_cell(cell.source, f"<{notebook}, cell [{number}]>", namespace)
        if TAG in cell.metadata.get("tags", []):
            namespace.update(parameters)


def read_functions(
    notebook: str, names: Sequence[str], namespace: dict[str, Any]
) -> list[Callable[..., Any]]:
    """Define functions of a notebook as its cells define them, and execute nothing else of it.

    Args:
        notebook: the file name of a notebook in the repository's root.
        names: the names of the functions.
        namespace: {name: value} of what the functions use.

    Returns:
        The functions, in the order of their names.
    """
    import nbformat

    namespace = dict(namespace)
    for cell in nbformat.read(ROOT / notebook, as_version=4).cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef) and node.name in names:
                    _execute_cell(ast.unparse(node), f"<{notebook}, {node.name}>", namespace)
    return [namespace[name] for name in names]


def _execute_cell(source: str, place: str, namespace: dict[str, Any]) -> None:
    """Execute the source of a cell, which `inspect` and error messages find by its place."""
    lines = source.splitlines(keepends=True)
    linecache.cache[place] = (len(source), None, lines, place)
    for line in lines:
        if line.startswith(("%", "!")):
            raise ValueError(
                f"{place}: {line.strip()!r} is a command of Jupyter, which several processes do "
                "not have. Execute it before the run, and take it out of the notebook."
            )
    try:
        exec(compile(source, place, "exec"), namespace)
    except (Exception, SystemExit) as error:
        message = f"{place} stopped: {type(error).__name__}: {error}"
        raise processes.CellError(message) from error


def _show_nothing(*objects: Any, **options: Any) -> None:
    """Take the place of IPython's `display`, which without a page would print objects' names."""
