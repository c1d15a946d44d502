"""Write colab/main.ipynb and colab/eval.ipynb: the notebooks of the root, each carrying the package.

    python colab/build.py

Colab opens a single file. So each has one section more, which installs what is missing and writes the package into a
folder beside it, and one cell after the parameters, which mounts Drive where a folder lies there. Outputs are left out.
"""

import copy
import re
import textwrap
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("torch", "numpy", "scipy", "pandas", "matplotlib")  # Colab's own stay as they are
ELSEWHERE = ("jupyter", "psutil", "tqdm")  # Colab has them, and any version will do
DRIVE = """import importlib
import sys

if "google.colab" in sys.modules and any(str(place).startswith("/content/drive") for place in (RESULTS, FIGURES)):
    importlib.import_module("google.colab.drive").mount("/content/drive")
"""


def pins() -> list[str]:
    """Return the lines of requirements.txt that Colab must have as they are."""
    lines = re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return [line for line in lines if line.split("==")[0] not in KEPT + ELSEWHERE]


def setup_cells() -> list[NotebookNode]:
    """Return the cells of the section that is put in after the title."""
    setup, install = ((ROOT / "colab" / name).read_text(encoding="utf-8").strip()
                      for name in ("setup.md", "install.py"))
    listed = textwrap.fill(", ".join(f'"{pin}"' for pin in pins()), 116, initial_indent=" " * 4,
                           subsequent_indent=" " * 4)
    install = install.replace("PINS = []", f"PINS = [\n{listed}]")
    package = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "posttrain").glob("*.*"))
               if path.name != "__main__.py"}
    files = [new_code_cell(f"%%writefile posttrain/{path.name}\n{text.rstrip()}") for path, text in package.items()]
    heading = new_markdown_cell("### The package\n\nThe modules of `posttrain/`, as in the repository.")
    heading.metadata["jp-MarkdownHeadingCollapsed"] = True
    return [new_markdown_cell(setup), new_code_cell(install), heading, *files]


def build(name: str) -> NotebookNode:
    """Return the notebook of the root with the section put in, without outputs."""
    notebook = copy.deepcopy(nbformat.read(ROOT / name, as_version=4))
    where = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(where + 1, new_code_cell(DRIVE.strip()))
    notebook.cells[1:1] = setup_cells()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    collapsed = [cell.id for cell in notebook.cells if cell.metadata.get("jp-MarkdownHeadingCollapsed")]
    notebook.metadata["colab"] = {"collapsed_sections": collapsed, "provenance": []}
    notebook.metadata["accelerator"] = "GPU"
    return notebook


if __name__ == "__main__":
    for name in ("main.ipynb", "eval.ipynb"):
        nbformat.write(build(name), ROOT / "colab" / name)
