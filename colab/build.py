"""Generate colab/*.ipynb: the notebooks of the repository's root with the package inside.

    python colab/build.py

Colab opens a single file. So each notebook gets a section after its title that installs missing
packages and writes the package `posttrain` into a folder beside the notebook. A cell after the
parameters mounts Google Drive if a folder is on it. Outputs are left out.

All files of the package are included, even those that no notebook imports. A run's record contains
the sha256 of the package's code, and this makes it the same in Colab as elsewhere.
"""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("main.ipynb", "eval.ipynb", "compare.ipynb")
WITHOUT_GPU = ("compare.ipynb",)
SUFFIXES = (".py", ".json", ".html", ".css", ".js")  # of the package's files
KEPT = ("torch", "numpy", "scipy", "pandas", "matplotlib")  # Colab's versions are kept
ANY_VERSION = ("jupyter", "psutil", "tqdm")  # Colab has them, and any version is good enough

PACKAGE = """\
### The package

The next cells write the files of `posttrain/`, as they are in the repository. To change one of
them, edit its cell, then choose Runtime > Run all."""

FORGET = """\
# Forget modules that were imported before, so that the files above are imported as they are now.
import importlib
import sys

for name in list(sys.modules):
    if name.split(".")[0] == "posttrain":
        del sys.modules[name]
importlib.invalidate_caches()"""

MOUNT = """\
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    from google.colab import drive

    folders = [Path(folder).absolute() for folder in (RESULTS, FIGURES) if folder]
    if any(folder.is_relative_to("/content/drive") for folder in folders):
        drive.mount("/content/drive")"""


def read_pins() -> dict[str, str]:
    """Read from requirements.txt the packages that Colab must have in exactly the pinned version.

    Returns:
        {package: version}.
    """
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = {}
    for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE):
        if package not in KEPT + ANY_VERSION:
            pins[package] = version
    return pins


def read_package() -> dict[str, str]:
    """Read the files of the package and its subpackages.

    Returns:
        {path relative to the root: text}.
    """
    files = {}
    for path in sorted((ROOT / "posttrain").rglob("*")):
        if path.suffix in SUFFIXES:
            files[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return files


def setup_cells() -> list[NotebookNode]:
    """Make the section after the title, which has the installation and the package."""
    setup = (ROOT / "colab" / "setup.md").read_text(encoding="utf-8")
    install = (ROOT / "colab" / "install.py").read_text(encoding="utf-8")
    pins = "".join(f'    "{package}": "{version}",\n' for package, version in read_pins().items())
    kept = ", ".join(f'"{package}"' for package in KEPT)
    install = install.replace("PINS = {}", f"PINS = {{\n{pins}}}")
    install = install.replace("KEPT = []", f"KEPT = [{kept}]")
    package = new_markdown_cell(PACKAGE)
    package.metadata["jp-MarkdownHeadingCollapsed"] = True
    cells = [new_markdown_cell(setup.strip()), new_code_cell(install.strip()), package]
    for path, text in read_package().items():
        cells.append(new_code_cell(f"%%writefile {path}\n{text.rstrip()}"))
    return [*cells, new_code_cell(FORGET), new_markdown_cell("### Imports")]


def build(name: str) -> NotebookNode:
    """Make a notebook for Colab.

    Args:
        name: the file name of a notebook in the root.

    Returns:
        The notebook with the additional section and cell, without outputs.
    """
    source = nbformat.read(ROOT / name, as_version=4)
    cells = []
    for cell in source.cells:
        tags = cell.metadata.get("tags", [])
        make_cell = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        cells.append(make_cell(cell.source, metadata={"tags": tags} if tags else {}))
        if "parameters" in tags:
            cells.append(new_code_cell(MOUNT))
    cells[1:1] = setup_cells()

    collapsed = []
    for number, cell in enumerate(cells):
        cell.id = cell.metadata["id"] = f"cell-{number}"  # Colab reads the id in the metadata
        if cell.metadata.get("jp-MarkdownHeadingCollapsed"):
            collapsed.append(cell.id)
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = source.metadata["kernelspec"]
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["colab"] = {"collapsed_sections": collapsed, "provenance": []}
    if name not in WITHOUT_GPU:
        notebook.metadata["accelerator"] = "GPU"
    return notebook


if __name__ == "__main__":
    for name in NOTEBOOKS:
        nbformat.write(build(name), ROOT / "colab" / name)
