"""Both notebooks in a real JupyterLab in Chromium, and executed in other ways than `make run`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
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
IDLE = "text=Python 3 (ipykernel) | Idle"
NEWS = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
NOTEBOOK = "jupyterapp.shell.currentWidget"
WIDTHS = """images => Promise.all(
  images.map(image => image.decode().then(() => image.naturalWidth))
)"""
# The texts of all bars in the page, each with a number that stays the same while the bar is drawn.
BARS = """() => [...document.querySelectorAll(".widget-hbox:has(.widget-hprogress)")].map(box => {
  box.dataset.number ??= window.bars = (window.bars ?? 0) + 1;
  return [box.dataset.number, box.textContent];
})"""


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = tmp_path_factory.mktemp("settings")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    places = {f"JUPYTER_{kind}_DIR": str(settings / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(settings / "lab")
    # Neither the network nor a question about news, which covers the lower right corner.
    (settings / "lab" / NEWS).parent.mkdir(parents=True)
    (settings / "lab" / NEWS).write_text('{"fetchNews": "false", "checkForUpdates": false}')
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


def run_all(browser, address, folder, name):
    """Open a notebook, and restart its kernel and run all cells through the menu.

    Returns:
        The page, the notebook as JupyterLab has saved it, and for each bar of training steps the
        numbers of steps that it has shown.
    """
    view = browser.new_page(viewport={"width": 1300, "height": 1000})
    workspace = name.partition(".")[0]  # of its own, so that only this notebook is open in it
    view.goto(f"{address}/lab/workspaces/{workspace}/tree/{name}?token={TOKEN}")
    view.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    view.locator(IDLE).first.wait_for(timeout=60_000)
    view.get_by_role("menuitem", name="Run", exact=True).click()
    view.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click()
    view.get_by_role("button", name="Confirm Kernel Restart").click()
    steps = defaultdict(set)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for bar, text in view.evaluate(BARS):
            shown = re.search(r"([0-9]+)/[0-9]+.*step/s", text)
            if shown:
                steps[bar].add(int(shown[1]))
        cells = view.evaluate(f"{NOTEBOOK}.content.model.toJSON().cells")
        cells = [cell for cell in cells if cell["cell_type"] == "code"]
        has_failed = any(
            output["output_type"] == "error" for cell in cells for output in cell["outputs"]
        )
        if has_failed or all(cell["execution_count"] for cell in cells):
            break
        view.wait_for_timeout(200)
    view.locator(IDLE).first.wait_for(timeout=30_000)
    view.evaluate(f"{NOTEBOOK}.context.save()")
    return view, nbformat.read(folder / name, as_version=4), steps


def require_figures(view, notebook):
    """Scroll to each cell with a figure, since JupyterLab draws only what is near, and see it."""
    for i, cell in enumerate(notebook.cells):
        images = [
            output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
        ]
        if images:
            view.evaluate(f"{NOTEBOOK}.content.scrollToItem({i})")
            drawn = view.locator(f".jp-Cell[data-windowed-list-index='{i}'] .jp-RenderedImage img")
            drawn.first.wait_for(timeout=30_000)
            widths = drawn.evaluate_all(WIDTHS)
            assert len(widths) == len(images)
            assert min(widths) > 300


def ask_in_the_form(view, cell):
    """Type questions into the form below a cell, and see an answer of every model to each."""
    view.evaluate(f"{NOTEBOOK}.content.scrollToItem({cell})")
    form = view.locator(f".jp-Cell[data-windowed-list-index='{cell}']")
    for number, question in enumerate(["How do I bake bread?", "And <b>rye</b>?"], start=1):
        form.locator("textarea[placeholder='Your question']").fill(question)
        form.get_by_role("button", name="Ask").click()
        form.locator("th", has_text=f"{number}. {question}").wait_for(timeout=60_000)
        headings = form.locator("thead th").all_text_contents()
        assert [text for text in headings if text.strip()] == ["Base", "SFT", "DPO", "SFT+DPO"]
        answers = form.locator("tbody tr").last.locator("td").all_text_contents()
        assert len(answers) == 4
        assert all(answer.startswith("[reward ") for answer in answers)
    form.get_by_role("button", name="Ask").click()
    form.get_by_text("The question is empty. Type one.").wait_for(timeout=10_000)


def test_both_notebooks_run_from_the_menu(lab, browser, tmp_path):
    address, folder = lab
    view, notebook, steps = run_all(browser, address, folder, "main.ipynb")
    view.screenshot(path=tmp_path / "main.png")
    require_whole(notebook)
    require_figures(view, notebook)
    assert any(len(counts) >= 2 for counts in steps.values()), dict(steps)  # a bar moved
    # The page and the kernel of main.ipynb stay open.
    view, notebook, _ = run_all(browser, address, folder, "eval.ipynb")
    view.screenshot(path=tmp_path / "eval.png")
    require_whole(notebook)
    require_figures(view, notebook)
    view.screenshot(path=tmp_path / "figure.png")
    ask_in_the_form(view, len(notebook.cells) - 1)
    view.screenshot(path=tmp_path / "form.png")
    with urllib.request.urlopen(f"{address}/api/sessions?token={TOKEN}", timeout=30) as answer:
        opened = [session["path"] for session in json.load(answer)]
    assert sorted(opened) == ["eval.ipynb", "main.ipynb"]
    assert (folder / "results" / "demo" / "report.html").stat().st_size > 100_000


# ---- without a browser


@pytest.mark.parametrize("elsewhere", [False, True])
def test_nbconvert_executes_both_notebooks(tmp_path, elsewhere):
    """It starts the kernel in the notebook's folder, wherever it is started itself."""
    folder = copy_repository(tmp_path / "repository")
    for name in ("main.ipynb", "eval.ipynb"):
        command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
        command += ["--output", f"executed-{name}", str(folder / name)]
        cwd = tmp_path if elsewhere else folder
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        require_whole(nbformat.read(folder / f"executed-{name}", as_version=4))
    assert (folder / "results" / "demo" / "report.html").exists()
    assert not (tmp_path / "results").exists()


def test_papermill_from_elsewhere_says_where_to_start(tmp_path):
    """It starts the kernel where it is started itself, and the package is not there."""
    folder = copy_repository(tmp_path / "repository")
    command = [sys.executable, "-m", "papermill", "--kernel", "python3"]
    command += [str(folder / "main.ipynb"), str(tmp_path / "executed.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "start Jupyter in the folder of the repository" in done.stderr
