"""Stop a Python process, as SIGSTOP does, when it begins to write a file that HALT_AT describes.

Python imports this by itself where the folder is in PYTHONPATH. So a test can look at a moment that is too short to be
waited for, and kill the process there.
"""

import os
import signal
import sys
from fnmatch import fnmatch


def halt(event, arguments):
    if event == "open" and arguments[1] == "w" and fnmatch(str(arguments[0]), os.environ["HALT_AT"]):
        os.kill(os.getpid(), signal.SIGSTOP)


sys.addaudithook(halt)
