"""Both notebooks in a real JupyterLab in Chromium, and executed in other ways than `make run`."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from urllib.error import URLError

import nbformat
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
NEEDED = ("posttrain", "demo", "main.ipynb", "eval.ipynb")
SMALL = {
    "main.ipynb": {'PRESET = "auto"': 'PRESET = "demo"', "MAX_PAIRS = None": "MAX_PAIRS = 400"},
    "eval.ipynb": {
        'PRESET = "auto"': 'PRESET = "demo"',
        "N_PROMPTS = None": "N_PROMPTS = 6",
        "MAX_NEW_TOKENS = None": "MAX_NEW_TOKENS = 12",
    },
}
TOKEN = "test"
PATIENCE = 240  # seconds that a notebook may take


def copy_repository(folder):
    """Copy what a run needs, and write small numbers into the notebooks' parameters, as users do.

    The committed outputs are removed, so that what is seen later was made here.
    """
    folder.mkdir(exist_ok=True)
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for name, changes in SMALL.items():
        notebook = nbformat.read(folder / name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                for old, new in changes.items():
                    assert cell.source.count(old) == 1
                    cell.source = cell.source.replace(old, new)
        nbformat.write(notebook, folder / name)
    return folder


def require_whole(notebook):
    """Every code cell ran in order, none failed, and there are figures."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells = [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    outputs = [output for cell in cells for output in cell.outputs]
    errors = [output.evalue for output in outputs if output.output_type == "error"]
    assert errors == []
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in output.get("data", {}) for output in outputs)


# ---- in the browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own on a free port; yields (its address, its folder)."""
    folder = copy_repository(tmp_path_factory.mktemp("lab"))
    port = 8700 + os.getpid() % 1000
    address = f"http://127.0.0.1:{port}"
    settings = tmp_path_factory.mktemp("settings")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    places = {f"JUPYTER_{kind}_DIR": str(settings / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(settings / "lab")
    with open(settings / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | places, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(f"{address}/api/status?token={TOKEN}", server, settings / "log")
        yield address, folder
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address, server, log):
    """Wait until a server answers, for a minute at most."""
    for _ in range(120):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    from benchmarks.report import OPTIONS, chromium

    if not chromium():
        pytest.skip("no Chromium here: `make browser` installs Debian's")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        yield opened
        opened.close()


def run_all(browser, address, folder, name):
    """Open a notebook, and restart its kernel and run all cells through the menu.

    Returns:
        The page, the notebook as JupyterLab has saved it, and the texts that progress bars have
        shown.
    """
    view = browser.new_page(viewport={"width": 1300, "height": 1000})
    workspace = name.partition(".")[0]  # of its own, so that only this notebook is open in it
    view.goto(f"{address}/lab/workspaces/{workspace}/tree/{name}?token={TOKEN}")
    view.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    view.locator("text=Python 3 (ipykernel) | Idle").first.wait_for(timeout=60_000)
    view.get_by_role("menuitem", name="Run", exact=True).click()
    view.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
    view.get_by_role("button", name="Confirm Kernel Restart").click()
    shown = set()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        shown |= set(view.locator(".widget-html-content").all_inner_texts())
        view.keyboard.press("Control+s")
        view.wait_for_timeout(500)
        notebook = nbformat.read(folder / name, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        has_failed = any(
            output.output_type == "error" for cell in cells for output in cell.outputs
        )
        if has_failed or all(cell.execution_count for cell in cells):
            break
    return view, notebook, shown


def test_both_notebooks_run_from_the_menu(lab, browser, tmp_path):
    address, folder = lab
    view, notebook, shown = run_all(browser, address, folder, "main.ipynb")
    view.screenshot(path=tmp_path / "main.png")
    require_whole(notebook)
    steps = [text for text in shown if re.search(r"[1-9][0-9]*/[0-9]+", text)]
    assert len(steps) >= 2, shown  # a bar moved
    # The page and the kernel of main.ipynb stay open.
    view, notebook, _ = run_all(browser, address, folder, "eval.ipynb")
    view.screenshot(path=tmp_path / "eval.png")
    require_whole(notebook)
    assert (folder / "results" / "demo" / "report.html").stat().st_size > 100_000
    view.locator(".jp-Cell:has-text('figures.beside_published')").last.scroll_into_view_if_needed()
    figure = view.locator(".jp-RenderedImage img").last
    figure.scroll_into_view_if_needed()
    view.screenshot(path=tmp_path / "figure.png")
    assert figure.evaluate("image => image.naturalWidth") > 300


# ---- without a browser


@pytest.mark.parametrize("elsewhere", [False, True])
def test_nbconvert_executes_main(tmp_path, elsewhere):
    """It starts the kernel in the notebook's folder, wherever it is started itself."""
    folder = copy_repository(tmp_path / "repository")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
    command += ["--output", "executed.ipynb", str(folder / "main.ipynb")]
    done = subprocess.run(
        command, cwd=tmp_path if elsewhere else folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    require_whole(nbformat.read(folder / "executed.ipynb", as_version=4))
    assert (folder / "results" / "demo" / "training.json").exists()


def test_papermill_from_elsewhere_says_where_to_start(tmp_path):
    """It starts the kernel where it is started itself, and the package is not there."""
    folder = copy_repository(tmp_path / "repository")
    command = [sys.executable, "-m", "papermill", "--kernel", "python3"]
    command += [str(folder / "main.ipynb"), str(tmp_path / "executed.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "start Jupyter in the folder of the repository" in done.stderr
