"""Stop a Python process, as SIGSTOP does, when it begins to write a file that HALT_AT describes.

HALT_COUNT says at which such file it stops, by default the first. Python imports this by itself
where the folder is in PYTHONPATH. So a test can look at a moment that is too short to be waited
for, and kill the process there.
"""

import itertools
import os
import signal
import sys
from fnmatch import fnmatch

times = itertools.count(1)


def halt(event, arguments):
    """Stop this process at the file that was asked for."""
    if event != "open" or arguments[1] != "w":
        return
    is_wanted = fnmatch(str(arguments[0]), os.environ["HALT_AT"])
    if is_wanted and next(times) == int(os.environ.get("HALT_COUNT", "1")):
        os.kill(os.getpid(), signal.SIGSTOP)


sys.addaudithook(halt)
