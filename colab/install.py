# Install what is missing at its pinned version; torch, numpy, scipy, pandas and matplotlib stay as they are.
import importlib.metadata
import os
import subprocess
import sys

PINS = []
KEPT = ["torch", "numpy", "scipy", "pandas", "matplotlib"]

known = [one for one in importlib.metadata.distributions() if one.name]  # one that lost its metadata has no name
installed = {one.name.lower().replace("-", "_"): one.version for one in known}
wanted = [pin for pin in PINS if installed.get(pin.split("==")[0].lower()) != pin.split("==")[1]]
if wanted:
    kept = [f"{name}=={installed[name]}" for name in KEPT if name in installed]
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted, *kept], capture_output=True,
                          text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(wanted)}:\n{done.stderr[-2000:]}")

stale = []
for pin in PINS:
    name, version = pin.split("==")
    module = sys.modules.get({"protobuf": "google.protobuf"}.get(name, name))
    if module is not None and getattr(module, "__version__", version) != version:
        stale.append(f"{name} {module.__version__}, not {version}")
if stale:
    raise RuntimeError(f"Still loaded are {'; '.join(stale)}: choose Runtime > Restart session, then Run all.")
os.makedirs("posttrain", exist_ok=True)
