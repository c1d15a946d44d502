# The repository, whose package and demo this notebook uses. A clone that is there is used again.
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""
COMMIT = ""


def run_git(*arguments):
    """Run git, and stop with its message if it fails."""
    try:
        git = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        message = "git is not installed here. Install it, and run this cell again."
        raise RuntimeError(message) from None
    if git.returncode:
        raise RuntimeError(
            f"git could not fetch {REPOSITORY} ({COMMIT}). Check that this machine has internet "
            f"access, then run this cell again.\n{git.stderr[-2000:]}"
        )
    return git.stdout.strip()


folder = Path(REPOSITORY.removesuffix(".git").split("/")[-1])
if Path.cwd().name != folder.name or not Path(".git").exists():  # not inside of it already
    if not (folder / ".git").exists():
        run_git("clone", "--quiet", REPOSITORY, str(folder))
    os.chdir(folder)
if run_git("rev-parse", "HEAD") != COMMIT:
    if run_git("status", "--porcelain", "--untracked-files=no"):
        print(f"{Path.cwd()} has changed files, so it is used as it is.")
    else:
        run_git("fetch", "--quiet", "origin")
        run_git("checkout", "--quiet", COMMIT)
if str(Path.cwd()) not in sys.path:
    sys.path.insert(0, str(Path.cwd()))
print(f"The repository is in {Path.cwd()}.")
