"""The shipping coordinator, workers and parameter servers in a simulated world: `simulation`."""

import os
import random

import pytest

from tests.dist.simulation.simulation import run

FIXED, FRESH, PORTION = 240, 60, 20
REPLAY = "replay it: BIGGRAPH_SEED={0} python -m pytest tests/dist/test_simulation.py -k replay"


def play(seed: int, *, calm: bool = False) -> None:
    report = run(seed, calm=calm)
    assert not report.wrong, f"{REPLAY.format(seed)}\n{report}"


@pytest.mark.parametrize("first", range(0, FIXED, PORTION))
def test_no_fault_costs_more_than_time(first):
    for seed in range(first, first + PORTION):
        play(seed)


@pytest.mark.parametrize("_", range(0, FRESH, PORTION))
def test_no_fault_costs_more_than_time_with_fresh_seeds(_):
    for _ in range(PORTION):
        play(random.SystemRandom().randrange(10**9))


def test_nothing_is_lost_where_nothing_goes_wrong():
    for seed in range(PORTION):
        play(seed, calm=True)


def test_a_seed_replays():
    assert run(3).history == run(3).history


@pytest.mark.skipif("BIGGRAPH_SEED" not in os.environ, reason="replays a seed that failed")
def test_replay():
    play(int(os.environ["BIGGRAPH_SEED"]))


@pytest.mark.chaos
@pytest.mark.parametrize("part", range(16))
def test_many_seeds(part):
    for seed in range(int(os.environ.get("BIGGRAPH_SEEDS", "20000")))[part::16]:
        play(10**6 + seed)
