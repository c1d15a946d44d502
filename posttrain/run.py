"""A run: the folder of its results and figures, its settings, its models and its sources."""

import os
import re
import shutil
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.files import write
from posttrain.processes import decided_by_main, on_main
from posttrain.record import Model, Record, list_changes, slug
from posttrain.store import Store

if TYPE_CHECKING:
    from posttrain.sources import Source

# The files that eval.ipynb makes. FRESH in eval.ipynb moves them aside and keeps the training.
OF_EVALUATION = re.compile(
    r"(prompts|responses|scores|second_scores|classification|metrics|votes)\.json"
    r"|(second_)?scores\.jsonl|summary\.\w+|report\.html|eval\.ipynb"
)
# FRESH moves a folder only if it contains one of these, or nothing but figures.
OF_RUN = re.compile(
    r"(run|training|prompts|responses|scores|second_scores|classification|metrics|compare)\.json"
    r"|adapters|models|checkpoints"
)
BEING_EXECUTED = "-stopped.ipynb"  # the end of a notebook's name until it has run to its end
FIGURE = (".png", ".pdf")  # the ends of a figure's names
OF_TRAINING = ("training.", "lengths.")  # the figures that main.ipynb makes
STAND_INS = " (stand-ins, not OPT-350M)"  # added to the label of a demo run
LONGEST_NAME = 200  # bytes; file systems allow 255, and FRESH adds the time
REFERENCES = ("human_chosen", "human_rejected", "empty", "refusal", "not_understood")


class Run(Store):
    """A run's folder under RESULTS and its record, run.json.

    Attributes:
        name: the name of the run and of its folder.
        folder: the folder of its results.
        figures: the folder of its figures.
        labelled: whether a line below every figure says which run it belongs to.
    """

    def __init__(
        self,
        results: str | Path,
        name: str,
        figures: str | Path | None = None,
        labelled: bool = True,
        must_exist: bool = False,
    ):
        """Open a run's folder. Nothing is written.

        Args:
            results: the folder of all runs.
            name: the run's name.
            figures: the folder of all runs' figures; None takes `figures` beside `results`.
            labelled: whether a line below every figure says which run it belongs to.
            must_exist: whether to refuse a run that does not exist.

        Raises:
            ValueError: if the name is a path, or too long for a folder.
            FileNotFoundError: if the run must exist and does not.
        """
        name = str(name)
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ValueError(f"RUN = {name!r} must be the plain name of a folder in RESULTS.")
        if len(name.encode(errors="surrogatepass")) > LONGEST_NAME:
            raise ValueError(
                f"RUN = {name[:40] + '…'!r} is too long for the name of a folder. Choose a name of "
                f"at most {LONGEST_NAME} letters (fewer, if some are not of the Latin alphabet)."
            )
        results = Path(os.path.expanduser(results))
        super().__init__(results / name)
        figures = figures or results.parent / "figures"
        self.figures = Path(os.path.expanduser(figures)) / name
        self.labelled = labelled
        if must_exist and not self.is_there("run.json"):
            there = sorted(path.parent.name for path in results.glob("*/run.json"))
            raise FileNotFoundError(
                f"{self.folder} has no run.json. Run main.ipynb with the same RUN and RESULTS "
                f"first. The runs in RESULTS are: {', '.join(there) or 'none'}. To import results "
                "from elsewhere, use `make import FROM=folder`."
            )

    @property
    def models(self) -> list[Model]:
        """The run's models in order. The first is the baseline."""
        return self.record.models

    @property
    def label(self) -> str:
        """The line below every figure and table that says which run it belongs to."""
        record = self.record
        if record.imported:
            origin = record.imported.get("what", "results from elsewhere")
            judge = record.sources.get("reward_model", {}).get("name")
            return f"{self.name} ({origin}{f', judged by {judge}' if judge else ''})"
        # The figures of main.ipynb do not depend on a judge, even if it runs after eval.ipynb.
        roles = ("base_model",) if self.begun else ("base_model", "reward_model")
        names = [record.sources[role]["name"] for role in roles if role in record.sources]
        text = f"{self.name}, preset {record.preset}, {' judged by '.join(names)}"
        return text + (STAND_INS if record.preset == "demo" else "")

    @decided_by_main
    def overview(self) -> str:
        """Describe what has changed since the run was made, and list the files of its folder."""
        changes = list_changes(self.record)
        lines = changes or ["Everything was made with the versions and the code installed now."]
        paths = sorted(self.folder.glob("[!.]*"))
        names = [path.name for path in paths if not path.name.endswith(BEING_EXECUTED)]
        listed = textwrap.wrap(", ".join(names), 90, break_on_hyphens=False)
        return "\n".join([*lines, f"{self.folder} contains:", *listed])

    def source(
        self,
        role: str,
        name: str,
        files: Sequence[str] | None = None,
        unlike: "Source | None" = None,
    ) -> "Source":
        """Pin a base model, dataset or judge to one version, as `sources.pin_source` does."""
        from posttrain.sources import pin_source  # the hub's client takes long to import

        return on_main(pin_source, self, role, name, files, unlike)

    # ---- settings and models

    def require_trainable(self) -> None:
        """Refuse a training in a run whose models come from elsewhere.

        Raises:
            ValueError: if the run was imported, or its models were copied from another run.
        """
        if self.record.imported:
            raise ValueError(
                f"{self.folder} contains imported results, so no model can be trained in it. "
                "Choose another RUN."
            )
        if self.record.copied:
            raise ValueError(
                f"{self.folder} contains the models of the run {self.record.copied['from']}, so no "
                "model is trained in it. Choose another RUN."
            )

    def begin(self, settings: Any, report: Any) -> None:
        """Enter the settings of a training, the report on its data, and the base into the record.

        If models have been trained already, the record keeps the settings that they were trained
        with until another model is trained.

        Args:
            settings: the settings of main.ipynb.
            report: the report of `data.load_pairs`, with a column for each subset.

        Raises:
            ValueError: if the run's models come from elsewhere.
        """
        self.require_trainable()
        rows = [{"subset": subset, **counts} for subset, counts in report.to_dict().items()]
        self.begun = {
            "preset": settings.preset,
            "settings": {"training": settings.model_dump(mode="json")},
            "data": rows,
        }
        if len(self.models) < 2:
            self.note(**self.begun)
        self.add_model(Model(name="Base", base=settings.base_model, adapter=None))

    def add_model(self, model: Model) -> None:
        """Enter a model into the record: a new one at the end, a known one in its place.

        Raises:
            ValueError: if the name cannot be used, as `require_name` says.
        """
        self.require_name(model)
        rows = self.models
        names = [row.name for row in rows]
        before = rows[0].base if rows else model.base
        if model.name in names:
            rows[names.index(model.name)] = model
        else:
            rows.append(model)
        if model.base not in [f"models/{slug(row.name)}" for row in rows]:
            for row in rows:  # the run's base may be a folder that has moved
                if row.base == before:
                    row.base = model.base
        self.note(models=rows)

    def require_name(self, model: Model) -> None:
        """Refuse a name that a model cannot have. This is called before the model is trained.

        Raises:
            ValueError: if the model's files would be those of another model, or if the name is that
                of the baseline or of a reference answer.
        """
        if slug(model.name) in REFERENCES:
            raise ValueError(
                f"{model.name!r} is the name of a reference answer. Choose another name."
            )
        names = [row.name for row in self.models]
        if model.place is not None and model.name in names[:1]:
            raise ValueError(
                f"{model.name!r} is the name of the untrained base. Choose another name."
            )
        for name in names:
            if name != model.name and slug(name) == slug(model.name):
                raise ValueError(
                    f"The models {name!r} and {model.name!r} would share the folder "
                    f"{slug(name)}. Give one of them another name."
                )

    # ---- starting over

    @decided_by_main
    def start_over(self, evaluation_alone: bool = False) -> None:
        """Move results and figures into new folders beside the old ones, named by the time.

        Args:
            evaluation_alone: whether to keep what main.ipynb made and what was imported.

        Raises:
            ValueError: if a folder is none of a run, such as a folder of the repository.
        """
        self.require_movable()
        with self.hold():
            record = self.record if evaluation_alone else Record(run=self.name)
            imported = []
            for name, artifact in record.artifacts.items():
                if "imported" in artifact.inputs:
                    imported.append(name.split("/")[0])
            for folder in (self.folder, self.figures):
                names = [path.name for path in folder.glob("[!.]*") if path.name not in imported]
                moving = [name for name in names if _moves(name, evaluation_alone)]
                aside = _name_aside(folder)
                # run.json is moved last, so that an interrupted move can be repeated.
                for name in sorted(moving, key=lambda name: name == "run.json"):
                    aside.mkdir(parents=True, exist_ok=True)
                    shutil.move(folder / name, aside / name)
                if moving:
                    print(f"FRESH: the old files of {folder} were moved to {aside}.")
            if evaluation_alone:
                self._forget_evaluation(imported)

    @decided_by_main
    def require_movable(self) -> None:
        """Refuse to start over where a folder contains files of which none is a run's.

        Raises:
            ValueError: if that is so, for example because it is a folder of the repository.
        """
        for parameter, folder in {"RESULTS": self.folder, "FIGURES": self.figures}.items():
            names = sorted(path.name for path in folder.glob("[!.]*"))
            names = [name for name in names if not name.endswith(BEING_EXECUTED)]
            are_figures = all(name.endswith(FIGURE) for name in names)
            if not are_figures and not any(OF_RUN.fullmatch(name) for name in names):
                raise ValueError(
                    f"FRESH would move {folder} aside, which is not the folder of a run: it "
                    f"contains {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}. "
                    f"Choose another RUN or {parameter}, or leave FRESH out."
                )

    def _forget_evaluation(self, imported: Sequence[str]) -> None:
        """Remove from the record the results of eval.ipynb and the sources that it used."""
        record = self.record
        for name in list(record.artifacts):
            if OF_EVALUATION.match(name) and name.split("/")[0] not in imported:
                del record.artifacts[name]
        for role in ("test_dataset", "reward_model", "second_judge"):
            record.sources.pop(role, None)
        write(self.folder / "run.json", record.model_dump())


def _moves(name: str, evaluation_alone: bool) -> bool:
    """Tell whether FRESH moves a file aside. A notebook that is being executed stays."""
    if name.endswith(BEING_EXECUTED):
        return False
    if not evaluation_alone:
        return True
    is_figure = name.endswith(FIGURE) and not name.startswith(OF_TRAINING)
    return is_figure or OF_EVALUATION.fullmatch(name) is not None


def _name_aside(folder: Path) -> Path:
    """Find a name for a new folder beside an old one, which contains the time."""
    name = f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    aside = folder.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{name}-{number}")
    return aside
