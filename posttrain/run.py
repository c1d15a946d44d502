"""A run: the folder of its results, its settings and models, where it comes from, starting over."""

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.files import write
from posttrain.record import Model, Record, list_changes, slug
from posttrain.store import Store

if TYPE_CHECKING:
    from posttrain.sources import Source

# What eval.ipynb makes of a run; FRESH in it moves these aside and keeps the training.
OF_EVALUATION = re.compile(
    r"(prompts|responses|scores|classification|metrics)\.json|summary\.\w+|report\.html|eval\.ipynb"
)
BEING_EXECUTED = "-stopped.ipynb"  # a notebook that has not gone through yet
OF_TRAINING = ("training.", "lengths.")  # the figures that main.ipynb makes
STAND_INS = " (stand-ins, not OPT-350M)"  # whose numbers those of the demo are
REFERENCES = ("human_chosen", "human_rejected", "empty", "refusal", "not_understood")


class Run(Store):
    """A run's folder under RESULTS and its record, run.json.

    Attributes:
        name: the run's name, that of its folder.
        folder: where its results lie.
        figures: where its figures lie.
        labelled: whether figures say below whose they are.
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
            name: the run's own.
            figures: the folder of all runs' figures; None takes `figures` beside `results`.
            labelled: whether figures say below whose they are.
            must_exist: whether a run that is not there is refused.

        Raises:
            ValueError: the name is a path.
            FileNotFoundError: the run must exist and does not.
        """
        name = str(name)
        if Path(name).name != name or name in ("", ".."):
            raise ValueError(f"RUN = {name!r}: it must be the plain name of a folder in RESULTS.")
        super().__init__(Path(results) / name)
        self.figures = Path(figures or Path(results).parent / "figures") / name
        self.labelled = labelled
        if must_exist and not (self.folder / "run.json").exists():
            there = sorted(path.parent.name for path in Path(results).glob("*/run.json"))
            raise FileNotFoundError(
                f"{self.folder} holds no run.json: run main.ipynb with the same RUN and RESULTS "
                f"first. Runs that are there: {', '.join(there) or 'none'}. Results from elsewhere "
                "are taken in by `make import FROM=folder`."
            )

    @property
    def models(self) -> list[Model]:
        """The run's models, in order; the first is the one that the others are compared with."""
        return self.record.models

    @property
    def label(self) -> str:
        """Whose numbers these are, for below every figure and table."""
        record = self.record
        if record.imported:
            origin = record.imported.get("what", "results from elsewhere")
            judge = record.sources.get("reward_model", {}).get("name")
            return f"{self.name} ({origin}{f', judged by {judge}' if judge else ''})"
        # A judge has no part in what main.ipynb draws, also where it runs again after eval.ipynb.
        roles = ("base_model",) if self.begun else ("base_model", "reward_model")
        names = [record.sources[role]["name"] for role in roles if role in record.sources]
        text = f"{self.name}, preset {record.preset}, {' judged by '.join(names)}"
        return text + (STAND_INS if record.preset == "demo" else "")

    def overview(self) -> str:
        """Word what differs between how the run was made and now, and what its folder holds."""
        changes = list_changes(self.record)
        lines = changes or ["All of it was made with these versions and this code."]
        paths = sorted(self.folder.glob("[!.]*"))
        names = [path.name for path in paths if not path.name.endswith(BEING_EXECUTED)]
        return "\n".join([*lines, f"{self.folder} holds: {', '.join(names)}"])

    def source(self, role: str, name: str, files: Sequence[str] | None = None) -> "Source":
        """Pin down a base model, dataset or judge, as `sources.pin_source` does."""
        from posttrain.sources import pin_source  # asks the hub, which nobody need wait for

        return pin_source(self, role, name, files)

    # ---- settings and models

    def begin(self, settings: Any, report: Any) -> None:
        """Enter the settings of a training, its cleaning report, and the base.

        Where models are there, the record keeps the settings that they were trained with, until
        another one is trained.

        Args:
            settings: those of main.ipynb.
            report: the table of `data.load_pairs`: a row a reason, a column a subset.

        Raises:
            ValueError: the run was imported, so that nothing can be trained in it.
        """
        if self.record.imported:
            raise ValueError(f"{self.folder} holds results from elsewhere. Choose another RUN.")
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
        """Enter a model into the record, behind those that are there, or in its own place.

        Raises:
            ValueError: its name is another model's, or a reference answer's.
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
            for row in rows:  # the run has one base beside, which may have moved
                if row.base == before:
                    row.base = model.base
        self.note(models=rows)

    def require_name(self, model: Model) -> None:
        """Refuse a model whose name it cannot have, which is better known before it is trained.

        Raises:
            ValueError: its files would be another model's, or its name is that of the baseline or
                of a reference answer.
        """
        if slug(model.name) in REFERENCES:
            raise ValueError(f"{model.name!r} is the name of a reference answer. Choose another.")
        names = [row.name for row in self.models]
        is_trained = model.adapter is not None or model.base == f"models/{slug(model.name)}"
        if is_trained and model.name in names[:1]:
            raise ValueError(f"{model.name!r} is the name of the untrained base. Choose another.")
        for name in names:
            if name != model.name and slug(name) == slug(model.name):
                raise ValueError(
                    f"The models {name!r} and {model.name!r} would share the folder "
                    f"{slug(name)}. Give one of them another name."
                )

    # ---- starting over

    def start_over(self, evaluation_alone: bool = False) -> None:
        """Move results and figures into new folders beside theirs, whose names hold the time.

        Args:
            evaluation_alone: whether what main.ipynb made stays, and what was imported.
        """
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
                # run.json last: until then the rest is known if this is interrupted
                for name in sorted(moving, key=lambda name: name == "run.json"):
                    aside.mkdir(parents=True, exist_ok=True)
                    shutil.move(folder / name, aside / name)
                if moving:
                    print(f"FRESH: what was in {folder} is in {aside} now.")
            if evaluation_alone:
                self._forget_evaluation(imported)

    def _forget_evaluation(self, imported: Sequence[str]) -> None:
        """Take out of the record what eval.ipynb made, and what its sources were known by."""
        record = self.record
        for name in list(record.artifacts):
            if OF_EVALUATION.match(name) and name.split("/")[0] not in imported:
                del record.artifacts[name]
        for role in ("test_dataset", "reward_model"):
            record.sources.pop(role, None)
        write(self.folder / "run.json", record.model_dump())


def _moves(name: str, evaluation_alone: bool) -> bool:
    """Tell whether FRESH moves a file aside; a notebook that is being executed stays."""
    if name.endswith(BEING_EXECUTED):
        return False
    if not evaluation_alone:
        return True
    is_figure = name.endswith((".png", ".pdf")) and not name.startswith(OF_TRAINING)
    return is_figure or OF_EVALUATION.fullmatch(name) is not None


def _name_aside(folder: Path) -> Path:
    """Name a new folder beside one, with the time in it."""
    name = f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    aside = folder.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{name}-{number}")
    return aside
