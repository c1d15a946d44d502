"""Let code run as a stranger's: in a process of its own that has never seen this package.

Python and the libraries need seconds to start. They are started once, in a process that is then
forked for each code.
"""

import contextlib
import io
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

# What a model card's lines import. Nothing of it is executed before a process is forked.
LIBRARIES = [
    "torch",
    "peft",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES)


def run_as_a_stranger(code, folder):
    """Run code in a process of its own, in a folder, and return what it prints."""
    with ProcessPoolExecutor(1, mp_context=_context, max_tasks_per_child=1) as processes:
        return processes.submit(_run, code, str(folder)).result()


def _run(code, folder):
    """Run code in this process, and return what it prints."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<code of a stranger>", "exec"), {"__name__": "__main__"})
    assert not [name for name in sys.modules if name.partition(".")[0] == "posttrain"]
    return printed.getvalue()
