# Missing packages, in the pinned versions. Colab's versions of those in KEPT are kept.
import importlib.metadata
import subprocess
import sys

PINS = {}
KEPT = []
MODULES = {"protobuf": "google.protobuf"}  # packages whose module has another name


def installed_version(package):
    """Look up the version of an installed package; None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, KeyError):  # KeyError if its metadata are lost
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
        raise RuntimeError(
            f"pip could not install {', '.join(missing)}. Check that this machine has internet "
            f"access (on Kaggle: Settings > Turn on internet).\n{pip.stderr[-2000:]}"
        )

# A module that was loaded before stays loaded in its old version until the session is restarted.
outdated = []
for package, version in PINS.items():
    module = sys.modules.get(MODULES.get(package, package))
    loaded = getattr(module, "__version__", version)
    if loaded != version:
        outdated.append(f"{package} {loaded}, not {version}")
if outdated:
    raise RuntimeError(
        f"These packages are still loaded in another version: {'; '.join(outdated)}. Choose "
        "Runtime > Restart session, then Run all."
    )
