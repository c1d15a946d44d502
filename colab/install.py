"""Install what is missing, at the pinned versions. What Colab has of KEPT stays as it is."""

import importlib.metadata
import os
import subprocess
import sys

PINS = {}
KEPT = []
MODULES = {"protobuf": "google.protobuf"}  # packages whose module has another name


def installed_version(package):
    """Give the version of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, KeyError):  # KeyError: its metadata are lost
        return None


missing = []
for package, version in PINS.items():
    if installed_version(package) != version:
        missing.append(f"{package}=={version}")
if missing:
    kept_versions = {package: installed_version(package) for package in KEPT}
    held = [f"{package}=={version}" for package, version in kept_versions.items() if version]
    print("Installing", ", ".join(missing))
    command = [sys.executable, "-m", "pip", "install", "--quiet", *missing, *held]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        raise RuntimeError(f"pip could not install {', '.join(missing)}:\n{pip.stderr[-2000:]}")

# What was loaded before stays loaded, however often this cell is run: only a restart helps.
outdated = []
for package, version in PINS.items():
    module = sys.modules.get(MODULES.get(package, package))
    loaded = getattr(module, "__version__", version)
    if loaded != version:
        outdated.append(f"{package} {loaded}, not {version}")
if outdated:
    raise RuntimeError(
        f"Still loaded: {'; '.join(outdated)}. Choose Runtime > Restart session, then Run all."
    )
os.makedirs("posttrain/page", exist_ok=True)
