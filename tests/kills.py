"""Kill demo runs with SIGKILL at random moments, and compare what they end with to a run that was left alone.

    python tests/kills.py [--kills 20] [--seed 0]

Several runs get their share of the kills, in both notebooks, one kill after another; a run goes on from what it had.
Its end must be the same to the byte: adapters, logs, prompts, responses, scores, metrics, tables and figures.
"""

import argparse
import random
import subprocess
import tempfile
import time
from pathlib import Path

from conftest import contents_of, differing, kill, start

NOTEBOOKS = ["main.ipynb", "eval.ipynb"]
KILLS_IN_A_RUN = 5


def timed_run(folder):
    """Run both notebooks undisturbed; return {notebook: seconds}."""
    seconds = {}
    for notebook in NOTEBOOKS:
        begin = time.monotonic()
        assert start(notebook, folder).wait() == 0, f"{notebook} fails by itself; see {folder}"
        seconds[notebook] = time.monotonic() - begin
    return seconds


def stop_after(process, seconds):
    """Kill a process after so many seconds, unless it ended before; return whether it was killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return True
    return False


def disturbed_run(folder, kills, seconds, generator):
    """Run both notebooks into a folder, killed `kills` times in all at random moments; return the moments."""
    moments = []
    for notebook in NOTEBOOKS:
        share = kills - len(moments) if notebook == NOTEBOOKS[-1] else round(kills * 3 / 5)
        for _ in range(share):
            moment = generator.uniform(0, seconds[notebook])
            process = start(notebook, folder)
            if stop_after(process, moment):
                moments.append((notebook, round(moment, 1)))
                print(f"  {notebook} killed after {moment:.1f} s", flush=True)
            elif process.returncode:
                raise SystemExit(f"{notebook} fails when it is run again; see {folder}")
        process = start(notebook, folder)
        assert process.wait() == 0, f"{notebook} fails when it is run again; see {folder}"
    return moments


def main():
    """Print every kill and what differs in the end; fail where something does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator, done, unlike = random.Random(options.seed), 0, []
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed_run(Path(folder) / "run0")
        print("undisturbed:", {name: round(value) for name, value in seconds.items()}, flush=True)
        whole = contents_of(Path(folder) / "run0")
        number = 0
        while done < options.kills:
            number += 1
            moments = disturbed_run(Path(folder) / f"run{number}", min(KILLS_IN_A_RUN, options.kills - done), seconds,
                                    generator)
            done += len(moments)
            unlike += differing(whole, contents_of(Path(folder) / f"run{number}"))
            print(f"run {number}: {len(moments)} kills, {done} in all; differing files: {unlike or 'none'}", flush=True)
    raise SystemExit(bool(unlike))


if __name__ == "__main__":
    main()
