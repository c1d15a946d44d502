"""What run.json holds: settings, models, sources, and what each thing in the folder was made from, and where."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, model_validator

from posttrain import MODELS
from posttrain.files import fingerprint

ADAPTERS = {"SFT": "adapters/sft", "DPO": "adapters/dpo", "SFT+DPO": "adapters/sft_dpo"}
FULL_SFT = "models/sft"  # the SFT model of full fine-tuning, the base of SFT+DPO in its turn
OF_TRAINING = ("run.json", "training.json", "adapters", "models", "unfinished/adapters", "unfinished/models",
               "training.png", "training.pdf", "main.ipynb")  # what main.ipynb makes of a run, figures included
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "numpy", "scipy")


class Model(BaseModel):
    """One of a run's models: an adapter over `base`, or `base` itself."""

    name: Literal[MODELS]
    base: str
    adapter: Literal[tuple(ADAPTERS.values())] | None


class Artifact(BaseModel):
    """What something in the folder was made from, its sha256, and where it was made; `seconds` unless interrupted."""

    made_from: dict[str, Any]
    sha256: str
    seconds: float | None
    environment: dict[str, Any]


class Ledger(BaseModel):
    """run.json. `sources`: {role: {"name", "commit", "sha256"}} of base model, dataset and judge."""

    run: str
    preset: str = ""
    settings: dict[str, dict[str, Any]] = {}
    models: list[Model] = []
    sources: dict[str, dict[str, str | None]] = {}
    data: list[dict[str, Any]] = []
    artifacts: dict[str, Artifact] = {}

    @model_validator(mode="after")
    def _models_are_the_runs(self):
        """Refuse models out of order, and a base that the settings do not name and that is not in the folder."""
        names = [model.name for model in self.models]
        if names != [name for name in MODELS if name in names] or names[:1] not in ([], ["Base"]):
            raise ValueError(f"its models are {names}: they begin with Base and stand in the order {list(MODELS)}")
        known = (self.settings.get("training", {}).get("base_model"), FULL_SFT)
        if strange := [model.base for model in self.models if model.base not in known]:
            raise ValueError(f"it names the base {strange[0]!r}, and its settings another one")
        return self


@cache  # the code that runs is the one that was there at the start
def environment() -> dict[str, Any]:
    """Return the day, and what a result depends on beside its settings: python, packages, device, git commit, code.

    `code_sha256` is that of this package and of the notebooks' code cells, parameters left out, where they lie in the
    working folder.
    """
    git = subprocess.run("git rev-parse HEAD", shell=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    code = [path.read_text(encoding="utf-8").strip() for path in sorted(Path(__file__).parent.glob("[!_]*.py"))]
    for notebook in (path for path in (Path("main.ipynb"), Path("eval.ipynb")) if path.exists()):
        code += ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
                 if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])]
    return {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
            "git_commit": git.stdout.strip() if git.returncode == 0 else None, "code_sha256": fingerprint(code)}


def changes(ledger: Ledger) -> list[str]:
    """Return a sentence for every version, device or code that differs between what was made and now."""
    def plain(made: dict[str, Any]) -> dict[str, Any]:
        return {"python": made.get("python"), "device": made.get("device"),
                "code": str(made.get("code_sha256"))[:8]} | made.get("packages", {})

    now = plain(environment())
    return [f"{name} was made with {what} {then.get(what)}, now it is {value}."
            for name, made in ledger.artifacts.items() for then in [plain(made.environment)]
            for what, value in now.items() if then.get(what) != value]
