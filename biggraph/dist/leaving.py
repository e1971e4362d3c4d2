"""How a process ends in whose threads torch still waits, for what nobody can make come.

Python ends a thread that wakes after the interpreter has begun to end, by unwinding it, which
torch answers by aborting the process. Knows nothing of what is waited for.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leave_threads_behind() -> Iterator[None]:
    """Let the process end with the exit code of the block, before threads that are left can wake.

    To be entered before anything else is registered with `atexit`, so that all of that still runs.
    """
    code = 1  # of an error that nobody expected

    def leave() -> None:
        if threading.active_count() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(leave)
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
