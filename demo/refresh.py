"""Make the committed results again: the notebooks' outputs and the runs `example` and `published`.

main.ipynb and eval.ipynb are executed in place as a demo run named `example`. The published record
is imported and measured again. compare.ipynb is executed on demo runs of three seeds, which are
then removed. The parameters cell has the run's name and preset only during the execution, so that
readers find the defaults in it. A notebook in which a cell fails is left unchanged.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
EXAMPLE = {'PRESET = "auto"': 'PRESET = "demo"', "RUN = None": 'RUN = "example"'}
PUBLISHED = {"RUN = None": 'RUN = "published"'}
IMPORTED = ("prompts.json", "responses.json", "scores.json")
BESIDE = ("paper.json", "claims.json", "human_replies.json")  # kept beside the imported record
SEEDS = ("0", "1", "2")
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar, useless after the execution


def execute(name, parameters):
    """Execute a notebook from top to bottom.

    Args:
        name: the file name of a notebook in the repository's root.
        parameters: {beginning of a line in the parameters cell: its replacement}.

    Returns:
        The notebook with its outputs and its own parameters.
    """
    notebook = nbformat.read(REPOSITORY / name, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    source = cell.source
    for default, value in parameters.items():
        if default not in cell.source:
            raise ValueError(f"{name}: no line of the parameters cell begins with {default!r}.")
        cell.source = cell.source.replace(default, value)
    place = {"metadata": {"path": str(REPOSITORY)}}
    NotebookClient(notebook, resources=place, coalesce_streams=True).execute()
    cell.source = source
    return notebook


def drop_passing_outputs(notebook):
    """Remove outputs that only matter during the execution: progress bars, warnings and times."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = []
            for output in cell.outputs:
                if WIDGET not in output.get("data", {}) and output.get("name") != "stderr":
                    kept.append(output)
            cell.outputs = kept
    notebook.metadata.pop("widgets", None)


def refresh_example():
    """Make the run `example` from the beginning, and save both notebooks with its outputs."""
    for parent in ("results", "figures"):
        shutil.rmtree(REPOSITORY / parent / "example", ignore_errors=True)
    executed = {name: execute(name, EXAMPLE) for name in ("main.ipynb", "eval.ipynb")}
    for name, notebook in executed.items():
        drop_passing_outputs(notebook)
        nbformat.write(notebook, REPOSITORY / name)


def refresh_published():
    """Import the published record of the study again, and measure it."""
    shutil.rmtree(REPOSITORY / "figures" / "published", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "published"
        source.mkdir()
        for name in (*IMPORTED, *BESIDE):
            shutil.copy(RESULTS / "published" / name, source)
        shutil.rmtree(RESULTS / "published")
        sys.path.insert(0, str(REPOSITORY))
        from posttrain.importing import import_results
        from posttrain.run import Run

        import_results(source, Run(RESULTS, "published"))
        for name in BESIDE:
            shutil.copy(source / name, RESULTS / "published")
    execute("eval.ipynb", PUBLISHED)


def refresh_comparison():
    """Train and evaluate the demo with three seeds, and save compare.ipynb with its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        results = f"{folder}/results"
        command = [sys.executable, "-m", "posttrain", "seeds", "PRESET=demo"]
        given = [f"SEEDS={' '.join(SEEDS)}", f"RESULTS={results}"]
        subprocess.run([*command, *given], cwd=REPOSITORY, check=True)
        notebook = execute("compare.ipynb", {'RESULTS = "results"': f"RESULTS = {results!r}"})
    drop_passing_outputs(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:  # the path of the temporary folder is of no interest
                output["text"] = output["text"].replace(f"{folder}/", "")
    nbformat.write(notebook, REPOSITORY / "compare.ipynb")


def refresh_real_model():
    """Draw the figures of the real model anew from the records of its training and its pairs."""
    sys.path.insert(0, str(REPOSITORY))
    from benchmarks import real_model_pairs
    from posttrain import training_figures
    from posttrain.files import read_json
    from posttrain.run import Run

    run = Run(RESULTS, "real-model", must_exist=True)
    log = read_json(run.path("training.json"), dict)
    models = [model.name for model in run.models]
    training_figures.show(training_figures.training(log, models), run, "training")
    drawn = training_figures.log_probabilities(log, models)
    training_figures.show(drawn, run, "log_probabilities")
    real_model_pairs.write_tables()


if __name__ == "__main__":
    refresh_example()
    refresh_real_model()
    refresh_published()
    refresh_comparison()
