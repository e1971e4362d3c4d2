"""How the processes of a run find each other: endpoints that lie beside the log.

Knows the run's place; nothing of what the processes do.
"""

from __future__ import annotations

import time

from biggraph.dist.endpoint import ENDPOINT_FILE, Endpoint, parse_endpoint
from biggraph.errors import LinkLost
from biggraph.storage.place import Place
from biggraph.storage.records import InitFacts
from biggraph.storage.run import read_facts

_LOOK_S = 0.2  # between two looks for a coordinator


def parameters_file(index: int) -> str:
    """Return the name under which a parameter server of its own says where it listens.

    >>> parameters_file(0)
    'endpoint-parameters-0.json'
    """
    return f"endpoint-parameters-{index}.json"


def find_endpoint(place: Place, name: str = ENDPOINT_FILE) -> Endpoint | None:
    """Return where the coordinator listens, or who else has this file; None before its start.

    Raises:
        FormatError: the file that says so is damaged.
    """
    try:
        data = place.read(name)
    except FileNotFoundError:
        return None
    return parse_endpoint(data, place.where(name))


def wait_for_run(place: Place, wait_s: float) -> InitFacts:
    """Return the facts of a run that its coordinator may still have to begin.

    Raises:
        LinkLost: no coordinator has begun it in time.
    """
    deadline = time.monotonic() + wait_s
    while True:
        facts, endpoint = read_facts(place), find_endpoint(place)
        if facts is not None and endpoint is not None:
            return facts
        if time.monotonic() > deadline:
            raise LinkLost(
                f"{place}: no coordinator has begun this run for {wait_s:g} s; start one with "
                "`biggraph coordinator`, with the same run file"
            )
        time.sleep(_LOOK_S)
