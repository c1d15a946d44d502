"""What the benchmarks share: the notebooks' cells, processes of their own, the machine's name."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import torch
from IPython.core.interactiveshell import InteractiveShell
from transformers import Trainer

from posttrain.device import settle_pass

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
HUB = ROOT / "demo" / "hub"  # the demo's dataset and models
DEMO = HUB / "hh-rlhf"
RESULT = "RESULT "  # begins the line in which a process prints what it measured


# ---- notebooks


class Notebook:
    """A notebook in this process, as a kernel would run it.

    Attributes:
        cells: its code cells.
        names: the names that the cells define, with their values.
    """

    def __init__(self, name: str, **parameters: Any):
        """Open a notebook of the repository; no cell is run.

        Args:
            name: its file.
            parameters: in place of those in its cell of parameters.
        """
        cells = nbformat.read(ROOT / name, as_version=4).cells
        self.cells = [cell for cell in cells if cell.cell_type == "code"]
        self.shell = InteractiveShell(user_ns={}, colors="nocolor")
        self.names: dict[str, Any] = self.shell.user_ns
        self._parameters = parameters

    def run(self, cell: Any) -> None:
        """Run a cell; what it raises is raised."""
        self.shell.run_cell(cell.source, silent=True).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            self.names.update(self._parameters)

    def run_all(self) -> None:
        """Run all cells from top to bottom."""
        for cell in self.cells:
            self.run(cell)


def prepare_training(**parameters: Any) -> Notebook:
    """Run the cells of main.ipynb that come before the first trainer; no model is trained.

    Args:
        parameters: those of the notebook, such as RESULTS.

    Returns:
        The notebook, whose trainers `build_trainer` builds.
    """
    notebook = Notebook("main.ipynb", **parameters)
    for cell in notebook.cells:
        if "train(trainer" in cell.source:
            break
        if "generation.ask(" not in cell.source and "figures.show(" not in cell.source:
            notebook.run(cell)
    notebook.names["train"] = _do_not_train
    return notebook


def _do_not_train(*args: Any, **kwargs: Any) -> list:
    """Stand in for `training.train` in a cell that builds a trainer and trains it."""
    return []


def build_trainer(notebook: Notebook, model: str) -> Trainer:
    """Build a trainer as main.ipynb's own cell does, with passes that fit into the memory.

    Args:
        notebook: as `prepare_training` gives it.
        model: the name of the model that the trainer would train, such as "DPO".
    """
    training = f'train(trainer, run, "{model}"'
    (cell,) = [cell for cell in notebook.cells if training in cell.source]
    notebook.run(cell)
    trainer = notebook.names["trainer"]
    settle_pass(trainer)
    return trainer


# ---- processes


def existing_folder(text: str) -> Path:
    """Read a folder from the command line.

    Raises:
        argparse.ArgumentTypeError: it is not there.
    """
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def print_result(result: Any) -> None:
    """Print what a process measured, for `in_a_process` to read."""
    print(f"\n{RESULT}{json.dumps(result)}")


def in_a_process(benchmark: str, *arguments: str) -> Any:
    """Let a benchmark measure something in a process of its own.

    Args:
        benchmark: its module, which takes the arguments after --one and calls `print_result`.
        arguments: what is measured.

    Returns:
        The result.

    Raises:
        RuntimeError: the process failed; the end of its output is in the message.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--one", *arguments]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if process.returncode:
        output = process.stdout + process.stderr
        raise RuntimeError(f"{' '.join(arguments)}:\n{output[-3000:]}")
    return json.loads(re.findall(rf"^{RESULT}(.*)$", process.stdout, re.MULTILINE)[-1])


# ---- the machine


def describe_machine() -> dict[str, Any]:
    """Name what computes (the GPU, or the processor) and the number of cores."""
    return {"machine": _name_processor(), "cores": os.cpu_count()}


def _name_processor() -> str:
    """Name the GPU, or the processor without one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        model = re.search(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE)
        name = model[1] if model else name
    return f"{name}, {platform.machine()}"
