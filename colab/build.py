"""Generate colab/*.ipynb: the notebooks of the repository's root, which run when opened in Colab.

    python colab/build.py

Colab opens a single file. So the parameters come first, and after them one cell, folded, installs
what is missing, fetches the package `posttrain`, and mounts Google Drive if a folder is on it. If
the repository has an https address (its git remote `origin`), the cell clones the last commit that
changed the package. Otherwise it contains the package in compressed form. Outputs are left out.

All files of the package are included, even those that no notebook imports. A run's record contains
the sha256 of the package's code, and this makes it the same in Colab as elsewhere.
"""

import base64
import hashlib
import io
import lzma
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("main.ipynb", "eval.ipynb", "compare.ipynb")
WITHOUT_GPU = ("compare.ipynb",)
SUFFIXES = (".py", ".json", ".html", ".css", ".js", ".md")  # of the package's files
KEPT = ("torch", "numpy", "scipy", "pandas", "matplotlib")  # Colab's versions are kept
ANY_VERSION = ("jupyter", "psutil", "tqdm")  # Colab has them, and any version is good enough
TITLE = "#@title Set up: install what is missing and fetch the package"
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab, in JupyterLab


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


def pack() -> tuple[str, str]:
    """Pack the files of the package and its subpackages; the same files give the same text.

    Returns:
        The xz-compressed tar archive as base85 text, and the archive's sha256.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted((ROOT / "posttrain").rglob("*")):
            if path.suffix not in SUFFIXES:
                continue
            content = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(ROOT).as_posix())
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    compressed = lzma.compress(packed.getvalue(), preset=9)
    return base64.b85encode(compressed).decode(), hashlib.sha256(compressed).hexdigest()


def find_commit() -> str:
    """Find the last commit that changed the package or the demo's stand-ins."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%H", "--", "posttrain", "demo"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def read_part(name: str, **values: str) -> str:
    """Read a part of the setup cell from this folder, and put values in the place of its own."""
    text = (ROOT / "colab" / name).read_text(encoding="utf-8").strip()
    for variable, value in values.items():
        text, count = re.subn(rf"^{variable} = .*$", f"{variable} = {value}", text, flags=re.M)
        if count != 1:
            raise ValueError(f"colab/{name} assigns {variable} {count} times, not once.")
    return text


def write_setup(address: str | None, commit: str | None = None) -> str:
    """Write the cell that sets up a session.

    Args:
        address: from which the repository is cloned; None puts the package into the cell.
        commit: what is checked out of the clone.
    """
    pins = "".join(f'    "{package}": "{version}",\n' for package, version in read_pins().items())
    kept = ", ".join(f'"{package}"' for package in KEPT)
    install = read_part("install.py", PINS=f"{{\n{pins}}}", KEPT=f"[{kept}]")
    if address is None:
        text, sha256 = pack()
        package = read_part("unpack.py", PACKAGE=f'"{text}"', SHA256=f'"{sha256}"')
    else:
        package = read_part("clone.py", REPOSITORY=f'"{address}"', COMMIT=f'"{commit}"')
    return "\n\n\n".join([TITLE, install, package, read_part("mount.py")])


def build(name: str, address: str | None = None, commit: str | None = None) -> NotebookNode:
    """Make a notebook for Colab.

    Args:
        name: the file name of a notebook in the root.
        address: from which the repository is cloned; None puts the package into the notebook.
        commit: what is checked out of the clone.

    Returns:
        The notebook with its parameters and the setup before its imports, without outputs.
    """
    source = nbformat.read(ROOT / name, as_version=4)
    cells = []
    for cell in source.cells:
        tags = cell.metadata.get("tags", [])
        make_cell = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        cells.append(make_cell(cell.source, metadata={"tags": tags} if tags else {}))
    (place,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    first, imports, heading = cells[0], cells[1 : place - 1], cells[place - 1 : place + 1]
    guide = new_markdown_cell(read_part("setup.md"))
    setup = new_code_cell(write_setup(address, commit), metadata=FOLDED)
    cells = [first, guide, *heading, setup, *imports, *cells[place + 1 :]]
    for number, cell in enumerate(cells):
        cell.id = cell.metadata["id"] = f"cell-{number}"  # Colab reads the id in the metadata

    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = source.metadata["kernelspec"]
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["colab"] = {"provenance": []}
    if name not in WITHOUT_GPU:
        notebook.metadata["accelerator"] = "GPU"
    return notebook


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from docs.readme_parts import PLACEHOLDER, public_address, read_origin

    origin = public_address(read_origin())
    found = (None, None) if origin == PLACEHOLDER else (origin, find_commit())
    for name in NOTEBOOKS:
        nbformat.write(build(name, *found), ROOT / "colab" / name)
