"""The generated parts of README.md that no result decides: how it is cloned, and the presets."""

import re
import subprocess
from urllib.parse import urlsplit

from docs.benchmark_tables import ROOT, write_table
from posttrain.settings import PRESETS, Evaluation, Training, choose

PLACEHOLDER = "https://github.com/<owner>/<repository>.git"  # where no origin has an address
STAND_IN = "a tiny stand-in for OPT"  # the demo's base, which is a folder
# What a preset needs. No benchmark has measured these times.
NEEDS = {
    "demo": "no GPU, and no download after the installation; a minute or two on two cores",
    "small": "no GPU; one to two hours on two cores ([estimated](docs/speed.md#the-preset-small))",
    "quick": "a GPU with 12 to 16 GB; up to an hour on a T4 "
    "([computed](docs/speed.md#on-gpus-computed), not measured)",
    "full": "a larger GPU; up to two hours on an A100 "
    "([computed](docs/speed.md#on-gpus-computed), not measured)",
    "paper": "a larger GPU; takes longer than `full`, since SFT trains all weights ([what differs]"
    "(docs/differences.md))",
}


def read_origin() -> str | None:
    """Read the address of the git remote `origin`; None where there is none, or no git."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None


def public_address(origin: str | None) -> str:
    """Turn the address of a git remote into one that anybody can clone.

    Args:
        origin: the address as git has it, None where there is none.

    Returns:
        An https address without credentials. `git@host:path` and `ssh://` become https. Anything
        else, such as a folder or a server on this machine, becomes PLACEHOLDER.
    """
    address = origin or ""
    short_form = re.fullmatch(r"[\w.-]+@([\w.-]+):(?!/)(.+)", address)
    if short_form:
        address = f"https://{short_form[1]}/{short_form[2]}"
    parts = urlsplit(address)
    is_public = "." in (parts.hostname or "") and parts.hostname != "127.0.0.1"
    if parts.scheme not in ("https", "ssh") or not is_public or not parts.path.strip("/"):
        return PLACEHOLDER
    host = parts.hostname
    if parts.scheme == "https" and parts.port:
        host = f"{host}:{parts.port}"
    return f"https://{host}{parts.path}"


def write_clone(address: str) -> str:
    """Write the commands that fetch the repository and run the demo.

    Args:
        address: of the repository, as `public_address` gives it.
    """
    lines = [
        "```sh",
        f"git clone {address} sft-dpo && cd sft-dpo",
        "make run PRESET=demo",
        "```",
    ]
    if address == PLACEHOLDER:
        lines += [
            "",
            "Replace `<owner>/<repository>` with the name under which you found this repository.",
        ]
    badges = write_badges(address)
    if badges:
        lines += ["", "Or open the notebooks in Colab:", "", badges]
    return "\n".join(lines)


def write_badges(address: str) -> str:
    """Write a badge for each notebook, which opens it in Colab; empty if Colab cannot.

    Args:
        address: of the repository. Colab opens notebooks from public repositories on GitHub.
    """
    repository = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if repository is None:
        return ""
    colab = "https://colab.research.google.com"
    badges = []
    for name in ("main", "eval", "compare"):
        picture = f"![Open {name}.ipynb in Colab]({colab}/assets/colab-badge.svg)"
        target = f"{colab}/github/{repository[1]}/blob/main/colab/{name}.ipynb"
        badges.append(f"`{name}.ipynb` [{picture}]({target})")
    return "\n".join(badges)


def write_presets() -> str:
    """Write the table of presets: what each trains and asks, on how much data, and its needs."""
    rows = []
    for preset in PRESETS:
        values = {}
        for name, field in Training.model_fields.items():
            values[name] = Training.PRESET_VALUES[preset].get(name, field.default)
        base = values["base_model"]
        model = f"`{base}`" if base.startswith("facebook/") else STAND_IN
        pairs = "all"
        if values["max_pairs"]:
            pairs = f"{values['max_pairs']:,}"
        prompts = str(choose(Evaluation, preset).n_prompts)
        rows.append([f"`{preset}`", model, pairs, prompts, NEEDS[preset]])
    headings = ["preset", "base model", "preference pairs", "test prompts of each kind", "needs"]
    return write_table(headings, rows)
