"""Secrets that processes share, as a file or the environment gives them.

Knows nothing of what they are for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from biggraph.errors import ConfigError, StorageError

SECRET_VARIABLE = "BIGGRAPH_SECRET"
MIN_SECRET_BYTES = 16

_MAX_FILE_BYTES = 65536


def environment_secret() -> bytes | None:
    """Return the environment's secret, None without one; raises ConfigError if too short."""
    value = os.environ.get(SECRET_VARIABLE)
    return long_enough(os.fsencode(value), SECRET_VARIABLE) if value else None


def read_secret(path: Path) -> bytes:
    """Return the content of a file that its owner alone can read.

    Raises:
        ConfigError: there is none, it is too short, or others could read it.
        StorageError: the file system refused.
    """
    try:
        # Not blocking: a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no job secret; start the coordinator first, or set {SECRET_VARIABLE} or "
            "cluster.secret_file"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot read the job secret: {error.strerror}") from error
    try:
        _check_secret_file(os.fstat(descriptor), path)
        return long_enough(os.read(descriptor, _MAX_FILE_BYTES), path)
    finally:
        os.close(descriptor)


def _check_secret_file(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: the job secret must be a regular file, found something else")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path}: the job secret belongs to user {found.st_uid}, this process to user "
            f"{os.geteuid()}; make a copy of your own"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path}: others can read or change the job secret (mode "
            f"{stat.S_IMODE(found.st_mode):04o}); chmod 600 {path}"
        )


def long_enough(value: bytes, source: object) -> bytes:
    """Return a secret without white space at its ends.

    Args:
        value: as given.
        source: where it is from, for messages.

    Raises:
        ConfigError: it is too short.
    """
    key = value.strip()
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"{source}: a job secret of {len(key)} bytes; give at least {MIN_SECRET_BYTES}, such "
            "as from `openssl rand -hex 32`"
        )
    return key
