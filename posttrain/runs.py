"""A run's folder: held by one process, its files whole or not there, and one ledger of what each was made from."""

import errno
import json
import re
import resource
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from IPython.display import Image, display
from matplotlib.figure import Figure
from pydantic import BaseModel

from posttrain import hub
from posttrain.files import read_json, remove, sha256_of, write, written_whole
from posttrain.ledger import Artifact, Ledger, Model, environment


class Source(NamedTuple):
    """A base model, judge or dataset. `folder`: None where it is neither at hand nor needed; `identity`: of a model,
    its commit on the hub or the sha256 of its folder.
    """

    name: str
    folder: Path | None
    identity: str | None
    commit: str | None


class Run:
    """A run's folder under RESULTS, this process's own until `release`, and its ledger.

    `elsewhere`: it holds scores.json, or prompts.json and responses.json, or all three, and no run.json: they came from
    elsewhere and are measured. Rewards that are missing are asked of a judge; nothing else is made that is not there.
    """

    def __init__(self, results: str | Path, name: str | int, figures: str | Path | None = None, begin: bool = False,
                 labelled: bool = True):
        """Hold the folder; `begin` makes it, as main.ipynb may. `figures`: None takes the folder beside RESULTS.

        `labelled`: figures say below whose they are.

        Raises ValueError for a name that is a path, and for a damaged ledger; FileNotFoundError for a run that is not
        there; RuntimeError for a folder that another process works in.
        """
        if Path(str(name)).name != str(name) or name in ("", ".."):
            raise ValueError(f"RUN = {name!r}: it must be the plain name of a folder under RESULTS.")
        self.folder = Path(results) / str(name)
        self.figures = (Path(figures) if figures else Path(results).parent / "figures") / str(name)
        ledger = self.folder / "run.json"
        prompts, responses, scores = ((self.folder / f"{raw}.json").exists()
                                      for raw in ("prompts", "responses", "scores"))
        self.elsewhere = (scores or prompts and responses) and not (
            ledger.exists() or (self.folder / "adapters").exists())
        if self.elsewhere and responses and not prompts:
            raise ValueError(f"{self.folder} holds responses.json from elsewhere without the prompts that they answer: "
                             "put prompts.json beside it, or remove it to measure the rewards alone.")
        if begin and self.elsewhere:
            raise ValueError(f"{self.folder} holds rewards that came from elsewhere. Choose another RUN.")
        if not (begin or self.elsewhere or ledger.exists()):
            raise FileNotFoundError(f"{self.folder} holds neither run.json nor rewards from elsewhere: run main.ipynb "
                                    "with the same RUN and RESULTS first. Runs that are there: "
                                    f"{sorted(path.name for path in self.folder.parent.glob('*/'))}.")
        known = read_json(ledger, Ledger) if ledger.exists() else Ledger(run="")
        self.ledger = known.model_copy(update={"run": str(name)})  # a copied run has its folder's name
        self.labelled = labelled
        self.asked: dict[str, str] = {}  # {role: name} of the sources that this process works with
        # the system drops the lock with its process, however that ends
        self.lock = FileLock(self.folder / ".lock", is_singleton=True, fallback_to_soft=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(f"{self.folder} is in use by another process. Wait until it ends, or stop it: a "
                               "notebook that broke off holds the folder until its kernel is shut down.") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            print(f"The file system of {self.folder} knows no locks: make sure that only one process works in it.")

    def release(self) -> None:
        """Let other processes work in the folder."""
        self.lock.release(force=True)

    def begin(self, settings: BaseModel, report: pd.DataFrame, made_from: dict[str, Any],
              models: dict[str, tuple[str, str | None]]) -> None:
        """Enter into the ledger what is trained: settings, the cleaning report, and {model: (base, adapter)}.

        Raises ValueError, and writes nothing, where a model in the folder was made from something else.
        """
        for name in self.ledger.artifacts:
            if re.match(r"(unfinished/)?(adapters|models)/", name) and (self.folder / name).exists():
                self.require_same(name, made_from)
        data = [{"subset": subset} | counts for subset, counts in report.to_dict().items()]
        rows = [Model(name=name, base=base, adapter=adapter) for name, (base, adapter) in models.items()]
        self.save(preset=settings.preset, settings=self.ledger.settings | {"training": settings.model_dump()},
                  models=rows, data=data)

    def save(self, **fields: Any) -> None:
        """Write the ledger, with new values of its fields."""
        for name, value in fields.items():
            setattr(self.ledger, name, value)
        write(self.folder / "run.json", self.ledger.model_dump())

    def start_over(self, keep: Sequence[str] = ()) -> None:
        """Move results, figures and executed notebooks into new folders beside theirs, but not what `keep` names.

        A notebook that is being executed lies in the folder too, as `*-stopped.ipynb`, and stays.
        """
        for folder in (self.folder, self.figures):
            names = [path.relative_to(folder) for pattern in ("[!.]*", "unfinished/*") for path in folder.glob(pattern)
                     if path.name != "unfinished" and not path.name.endswith("-stopped.ipynb")]
            moving = [name for name in names if name.as_posix() not in keep]
            aside = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            for name in sorted(moving, key=lambda name: name.name == "run.json"):  # last: till then the rest is known
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder / name, aside / name)
            if moving:
                print(f"FRESH: what was in {folder} is in {aside} now.")
        kept = {name: made for name, made in self.ledger.artifacts.items()
                if any(name == one or name.startswith(f"{one}/") for one in keep)}
        self.ledger = self.ledger.model_copy(update={"artifacts": kept}) if kept else Ledger(run=self.ledger.run)

    def source(self, role: str, name: str, files: Sequence[str] | None = None,
               needed_for: Sequence[str] = ()) -> Source:
        """Return a base model, judge or dataset; `role`: "base_model", "reward_model" or "dataset".

        `files`: those wanted of a dataset, None for a model.
        Of a name on the hub the run keeps to the commit that it began with. Where all of `needed_for` is in the folder,
        it may be missing. Raises ValueError where it is missing, or something here was made from another one.
        """
        if self.elsewhere and (role != "reward_model" or (self.folder / "scores.json").exists()):
            return Source(str(name), None, None, None)
        name, known = str(name), self.ledger.sources.get(role, {})
        self.asked[role] = name
        needed = not needed_for or not all((self.folder / artifact).exists() for artifact in needed_for)
        if not needed and not Path(name).is_dir():
            if known and known["name"] != name:
                raise _other(self.folder, role, known["name"], name)
            return Source(name, None, known.get("commit") or known.get("sha256"), known.get("commit"))
        folder = hub.fetch(role.upper(), name, files, known.get("commit") if known.get("name") == name else None)
        commit = hub.commit_of(folder)
        sha256 = sha256_of(folder) if files is None and not commit else None
        self.require_everywhere({role: commit or sha256})
        self.ledger.sources[role] = {"name": name, "commit": commit, "sha256": sha256}
        return Source(name, folder, commit or sha256, commit)

    def once(self, name: str, make: Callable, made_from: dict[str, Any]) -> Any:
        """Return what is under `name` in the folder; where it is not there, make it first, whole or not at all.

        `name`: a JSON file's, whose data `make()` returns, or a folder's, which `make(folder)` fills. Returns the data,
        or the folder. Raises ValueError where what is there was made from something else, or was changed.
        """
        path, is_json = self.folder / name, name.endswith(".json")
        if self.elsewhere:
            if name == "scores.json" and not path.exists():
                write(path, make())
            return read_json(path) if path.exists() else []
        if path.exists():
            self.require_same(name, made_from)
            if not self.is_whole(name):
                raise ValueError(f"{path} is not what was made: it was changed since, or cut short. Put it back as it "
                                 "was, or remove it, and it is made anew.")
        else:
            interrupted = any(other.startswith(f"unfinished/{name}/") for other in self.ledger.artifacts)
            begin = time.perf_counter()
            with written_whole(path) as temporary:
                made = make() if is_json else make(temporary)
                if is_json:
                    write(temporary, made)
                seconds = time.perf_counter() - begin
                # its entry first: an entry without its file does no harm, a file without its entry does
                self.seal(name, made_from, temporary, None if interrupted else round(seconds, 1))
            if not name.startswith("unfinished/"):
                print(f"{name}: {seconds:.0f} s, {peak_memory()}")
        self.forget(f"unfinished/{name}")
        return read_json(path) if is_json else path

    def once_each(self, name: str, keys: Sequence[str], make: Callable[[str], list],
                  made_from: dict[str, Any]) -> list:
        """As `once`, for a list of records made key by key; what was finished before an interruption is kept."""
        if self.elsewhere:
            return self.once(name, lambda: [record for key in keys for record in make(key)], made_from)

        def join():
            parts = [self.once(f"unfinished/{name}/{key}.json", partial(make, key), made_from) for key in keys]
            return [record for part in parts for record in part]

        return self.once(name, join, made_from)

    def seal(self, name: str, made_from: dict[str, Any], path: Path | None = None,
             seconds: float | None = None) -> None:
        """Enter into the ledger what something was made from, and its sha256; `path`: where it lies until then."""
        self.ledger.artifacts[name] = Artifact(made_from=made_from, sha256=sha256_of(path or self.folder / name),
                                               seconds=seconds, environment=environment())
        self.save()

    def is_whole(self, name: str) -> bool:
        """Tell whether something is in the folder as it was when it was sealed."""
        made, path = self.ledger.artifacts.get(name), self.folder / name
        return made is not None and path.exists() and made.sha256 == sha256_of(path)

    def require_same(self, name: str, made_from: dict[str, Any]) -> None:
        """Raise ValueError, naming it, where something was made from something else, or nothing is known of it."""
        if name not in self.ledger.artifacts:
            raise ValueError(f"{self.folder / name} is there, but run.json does not say what it was made from. Put "
                             "run.json back, or set FRESH = True, which moves what is there aside.")
        known = self.ledger.artifacts[name].made_from
        for key, value in json.loads(json.dumps(made_from)).items():
            if key not in known or known[key] != value:
                raise _other(self.folder / name, key, known.get(key), value)

    def require_everywhere(self, known: dict[str, Any]) -> None:
        """Raise ValueError where anything in the folder was made from something else than what is known now."""
        for name, made in self.ledger.artifacts.items():
            if (self.folder / name).exists():
                self.require_same(name, {key: value for key, value in known.items() if key in made.made_from})

    def identities(self, *names: str) -> dict[str, str]:
        """Return {name: sha256} of what was made, for what is made from it."""
        return {name: self.ledger.artifacts[name].sha256 for name in names if name in self.ledger.artifacts}

    def forget(self, name: str) -> None:
        """Remove something and what is in it, from the folder and from the ledger."""
        known = [other for other in self.ledger.artifacts if other == name or other.startswith(f"{name}/")]
        remove(self.folder / name)
        for parent in (self.folder / name).parents:
            if parent.is_relative_to(self.folder / "unfinished") and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        for other in known:
            del self.ledger.artifacts[other]
        if known:
            self.save()

    @property
    def label(self) -> str:
        """Return whose numbers these are, for below every figure and table."""
        if self.elsewhere:
            judge = self.asked.get("reward_model")
            what = f"responses from elsewhere, judged by {judge}" if judge else "rewards from elsewhere"
            return f"{self.ledger.run} ({what})"
        names = [self.asked[role] for role in ("base_model", "reward_model") if role in self.asked]
        stand_ins = " (stand-ins, not OPT-350M)" if self.ledger.preset == "demo" else ""
        return f"{self.ledger.run}, preset {self.ledger.preset}, {' judged by '.join(names)}{stand_ins}"

    def show(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG and PDF into the folder of figures, the run's label below it if wanted, and show it."""
        if self.labelled:
            letters = int(20 * figure.get_figwidth())  # of this size beside each other
            text = textwrap.fill(self.label, letters, break_on_hyphens=False)
            figure.supxlabel(text, x=0.99, ha="right", multialignment="right", fontsize=6, color="0.4",
                             parse_math=False)
        for suffix, metadata in (("png", {}), ("pdf", {"CreationDate": None})):  # no date: same run, same file
            with written_whole(self.figures / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, dpi=300, metadata=metadata)
        shown = BytesIO()
        figure.savefig(shown, format="png", dpi=110)
        display(Image(shown.getvalue()))


def peak_memory() -> str:
    """Return the most memory that was used at once: on the GPU, or by this process where there is none."""
    if torch.cuda.is_available():
        return f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"peak memory {process_peak():.1f} GiB"


def process_peak() -> float:
    """Return the most memory that this process has had, in GiB."""
    status = Path("/proc/self/status")
    if found := status.exists() and re.search(r"VmHWM:\s*(\d+) kB", status.read_text()):
        return int(found[1]) / 2**20  # on Linux getrusage may hand down the peak of the process that started this one
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _other(where: Path, what: str, then: Any, now: Any) -> ValueError:
    """Return the error of something that was made from one thing, and would be made from another now."""
    return ValueError(f"{where} was made with {what} = {then!r}, now it is {now!r}. Set it back, choose another RUN, "
                      "or set FRESH = True, which moves the old files aside.")
