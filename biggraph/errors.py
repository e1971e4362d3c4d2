"""Every error a user can cause or must act on.

    BigGraphError
    ├── ConfigError       a run file or an argument is wrong
    ├── InputError        a source file, a name or a value given by the user is wrong
    ├── FormatError       a graph directory or checkpoint is damaged, foreign or of another version
    ├── StorageError      the file system refused: no space, no permission, already occupied
    ├── DivergenceError   training produced NaN, infinity or an exploding loss
    ├── Interrupted       a signal stopped the run after its state was committed
    ├── LinkLost          another process of the cluster did not answer in time
    └── RemoteError       another process of the cluster could not handle a request

A message says what is wrong, where, what was found and what to do. The command line prints it as
one line and exits with `exit_code`; everything else is a defect and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BigGraphError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 2


class ConfigError(BigGraphError):
    """A run file, an override or an argument is wrong."""


class InputError(BigGraphError):
    """A source file, an entity name, a relation name or a value is wrong."""


class FormatError(BigGraphError):
    """A graph directory or a checkpoint is damaged, foreign, or of another version."""


class StorageError(BigGraphError):
    """The file system refused an operation."""


class DivergenceError(BigGraphError):
    """Training produced a loss or a row that is not finite, or a loss that exploded."""

    exit_code = 3


class Interrupted(BigGraphError):
    """A signal stopped the run after its state was committed."""

    exit_code = 130


class LinkLost(BigGraphError):
    """No valid answer came in time: the other side is dead, frozen, unreachable or refused."""

    exit_code = 4


class RemoteError(BigGraphError):
    """The other side answered that it could not handle the request."""


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return '; did you mean "x"?' for the closest known word, or a list of the known words.

    >>> did_you_mean("complx_diagonal", ["complex_diagonal", "diagonal"])
    '; did you mean "complex_diagonal"?'
    >>> did_you_mean("zzz", ["a", "b"])
    '; known: a, b'
    """
    known = list(known)
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"; known: {shown}" if known else ""
