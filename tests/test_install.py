"""The installation: the lock against the pins, what `make` runs, and the files that use it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = ("requirements.txt", "requirements-dev.txt")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEM = "/usr/bin:/bin"
CPU_TORCH = "--index-url https://download.pytorch.org/whl/cpu"
# A Python that makes an environment of stand-ins, which write down how they are called.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
mkdir -p .venv/bin
cat > .venv/bin/pip <<'END'
#!/bin/sh
[ "$1" = config ] && echo "$PIP_SAYS" && exit 0
echo "pip $@" >> calls
END
chmod +x .venv/bin/pip
"""
UV = """#!/bin/sh
echo "uv $@" >> calls
exit $UV_EXIT
"""


def read_pins():
    """Read {package: version} of all pins."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in PINS)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def read_lock():
    """Read the lock's entries: a list of (requirement, hashes)."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = []
    for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        requirement = Requirement(block.partition("\\")[0].strip())
        entries.append((requirement, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)))
    return entries


# ---- the lock


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_every_pin_once_for_every_python(python):
    environment = {"python_full_version": f"{python}.0", "python_version": python}
    environment |= {"sys_platform": "linux", "platform_system": "Linux"}
    versions = {}
    for requirement, _ in read_lock():
        marker = requirement.marker or Marker("python_version > '3'")
        if marker.evaluate(environment):
            assert requirement.name not in versions, requirement
            versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    names = {name.lower().replace("_", "-"): version for name, version in read_pins().items()}
    assert len(names) > 25
    assert {name: versions.get(name) for name in names} == names


def test_everything_that_an_installed_package_needs_is_in_the_lock():
    locked = {requirement.name for requirement, _ in read_lock()}
    seen, waiting = set(), [Requirement(name) for name in read_pins()]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, *sorted(wanted.extras)) in seen:
            continue
        seen.add((name, *sorted(wanted.extras)))
        assert name in locked
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            extras = ["", *wanted.extras]
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    assert len(seen) > 100
    assert {"triton", "nvidia-nccl-cu13"} <= locked  # of PyPI's torch, with CUDA on Linux


def test_every_entry_has_hashes_and_nothing_local_stands_in_the_lock():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for requirement, hashes in read_lock():
        assert hashes, requirement
        assert requirement.url is None
        assert "+" not in str(requirement.specifier), requirement
    assert text.count("--hash=") == text.count("--hash=sha256:")
    assert "/" not in re.sub(r"#.*", "", text)
    assert "# torch is PyPI's, which includes CUDA on Linux." in text[:400]


# ---- what make runs


@pytest.fixture
def make_install(tmp_path):
    """Run `make install` beside stand-ins of Python, pip and uv; return what they were told."""
    for name in ("Makefile", *PINS, "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()

    def write_tool(name, text):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(target="install", with_uv=True, pip_says="", uv_exit=0):
        write_tool("python", PYTHON)
        if with_uv:
            write_tool("uv", UV)
        elif shutil.which("uv", path=SYSTEM):
            pytest.skip("this system has a uv of its own, which make would find")
        variables = {"PIP_SAYS": pip_says, "UV_EXIT": str(uv_exit), "PATH": f"{tools}:{SYSTEM}"}
        done = subprocess.run(
            ["make", target, "PYTHON=python"],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_uv_installs_by_the_lock(make_install):
    done, calls = make_install(pip_says="global.timeout='180'")
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert call.startswith("uv pip install")
    assert call.endswith("-r requirements-dev.txt --constraints requirements.lock")


@pytest.mark.parametrize(
    ("with_uv", "pip_says"),
    [
        (False, ""),
        (True, "global.index-url='https://mirror.example/simple'"),
        (True, ":env:.find-links='wheels'"),
        (True, "user.extra-index-url='https://mirror.example/simple'"),
        (True, "site.constraint='constraints.txt'"),
    ],
)
def test_pip_installs_the_versions_of_the_lock(make_install, tmp_path, with_uv, pip_says):
    done, calls = make_install(with_uv=with_uv, pip_says=pip_says)
    assert done.returncode == 0, done.stderr
    assert calls == ["pip install --quiet -r requirements-dev.txt -c .venv/versions.txt"]
    versions = (tmp_path / ".venv" / "versions.txt").read_text().splitlines()
    assert [str(Requirement(line)) for line in versions] == [
        str(requirement) for requirement, _ in read_lock()
    ]


def test_failed_installation_is_repeated(make_install):
    done, calls = make_install(uv_exit=1)
    assert done.returncode != 0
    assert "could not be installed, as is said above" in done.stdout
    done, calls = make_install()
    assert done.returncode == 0
    assert len(calls) == 2
    _, calls = make_install()  # now it is there
    assert len(calls) == 2


def test_lock_is_made_by_one_command(make_install, tmp_path):
    done, calls = make_install("lock")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requirements.lock").read_text().startswith("# All packages of")
    for option in ("--universal", "--generate-hashes", "--python-version 3.11"):
        assert option in calls[0]
    assert calls[0].endswith("requirements-dev.txt --output-file requirements.lock")


def test_lock_without_uv_says_where_it_is_to_be_had(make_install):
    done, calls = make_install("lock", with_uv=False)
    assert done.returncode != 0 and not calls
    assert "make lock needs uv: https://docs.astral.sh/uv" in done.stdout


# ---- the files that start it elsewhere


def test_container_installs_as_the_readme_says():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    steps = container["postCreateCommand"].split(" && ")
    assert steps[0] == "python3 -m venv .venv"
    assert steps[1] == f".venv/bin/pip install --quiet torch=={read_pins()['torch']} {CPU_TORCH}"
    assert steps[2:] == ["make install"]
    for name in container["customizations"]["codespaces"]["openFiles"]:
        assert (ROOT / name).is_file()


def test_workflow_calls_the_script_of_the_tests():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps[-1] == ".ci/run"
    assert f"torch=={read_pins()['torch']} {CPU_TORCH}" in steps[0]
    assert set(job["strategy"]["matrix"]["python"]) <= set(PYTHONS)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_hook_before_a_commit_has_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["rev"] == f"v{read_pins()['ruff']}"
    (hook,) = repository["hooks"]
    assert hook["id"] == "ruff-check" and "jupyter" in hook["types_or"]
