"""What a worker does when a file is gone that it was about to read."""

import math
from types import SimpleNamespace

import pytest

from biggraph.errors import FormatError, StorageError
from biggraph.train.trainer import _STUMBLES, Trainer

GONE = FormatError("parts/e/0/v000002-f000006.h5: missing")


class SessionDouble:
    """A lease that lives."""

    def __init__(self, ttl_s):
        self.ttl_s, self.released = ttl_s, 0

    def renew(self, edges):
        pass

    def release(self):
        self.released += 1


def worker(ttl_s=60.0):
    return SimpleNamespace(session=SessionDouble(ttl_s), _abandoned=False, _stumbled=0)


def test_a_worker_among_others_begins_again_a_few_times():
    found = worker()
    for _ in range(_STUMBLES):
        Trainer._leave(found, GONE)
    with pytest.raises(FormatError, match="missing"):
        Trainer._leave(found, GONE)
    assert found.session.released == _STUMBLES + 1


@pytest.mark.parametrize(
    ("ttl_s", "error"), [(math.inf, GONE), (60.0, StorageError("full"))], ids=["alone", "full disk"]
)
def test_what_beginning_again_does_not_mend_is_said_at_once(ttl_s, error):
    with pytest.raises(type(error)):
        Trainer._leave(worker(ttl_s), error)
