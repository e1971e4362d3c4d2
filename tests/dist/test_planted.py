"""Defects planted into the shipping code: the simulator has to find each of them.

A table: what is done to the code, and within how many seeds of which faults it has to show. The log
(`RunState`) refuses most of what would follow, which the simulator sees; `BARE` plants defects with
the defences behind them taken away too, so that the oracle has to see the damage itself.
"""

import math
from dataclasses import replace

import pytest

from biggraph.dist import parameter_server, parameters, session
from biggraph.dist.board import Board
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.holder import Holder
from biggraph.storage import log, state, store
from biggraph.storage.cache import PartitionCache
from biggraph.storage.run import RunDirectory
from tests.dist.simulation.disk import Disk
from tests.dist.simulation.simulation import run

WORKERS = ("kill worker", "freeze worker", "cut off")
COORDINATORS = ("kill coordinator", "second coordinator", "freeze coordinator", "full disk")

PLANTED = {}
BARE = {}


def plants(*faults, within, table=PLANTED):
    def register(plant):
        table[plant.__name__] = (plant, within, faults)
        return plant

    return register


def disarm(patch):
    """Let the log take any commit whose fence is above the others."""
    for check in ("_check_progress", "_check_chains", "_check_edges"):
        patch.setattr(state, check, lambda *arguments: None)
    patch.setattr(state, "_check_live", lambda s, f, r: s.leases.get(f) or state.Lease(f, "?", 0))
    patch.setattr(Coordinator, "_may_have", lambda self, holder, holding: True)


def revive(self, request):
    """Take a commit under whatever fence."""
    self._holders.setdefault(request.fence, Holder(request.worker, math.inf, known=True))


@plants(*WORKERS, within=40)
def commit_without_fence_check(patch):
    submit = Coordinator._submit

    def _submit(self, request, now):
        ended = self.state.ended.get(request.worker)
        if ended is None or ended[0] != request.fence:
            revive(self, request)
        return submit(self, request, now)

    patch.setattr(Coordinator, "_submit", _submit)


@plants(*WORKERS, within=40, table=BARE)
def commit_without_fence_check_anywhere(patch):
    commit_without_fence_check(patch)
    disarm(patch)


@plants(within=10)
def lease_is_not_logged(patch):
    def begin_lease(self, worker, incarnation):
        self._fence = self._next_fence() + 1
        return self._fence

    patch.setattr(RunDirectory, "begin_lease", begin_lease)


@plants(*WORKERS, within=20)
def expiry_is_not_logged(patch):
    patch.setattr(Coordinator, "_end", lambda self, fence, reason, rate=1.0: self._forget(fence))


@plants(*WORKERS, within=40)
def name_without_fence(patch):
    path = store.partition_path
    patch.setattr(store, "partition_path", lambda key, version, fence: path(key, version, 1))


@plants("twin worker", within=20)
def files_overwritten_in_place(patch):
    name_without_fence(patch)
    create = Disk.create

    def overwrite(self, name, room):
        if name.startswith("parts/"):
            self.files.pop(name, None)
        return create(self, name, room)

    patch.setattr(Disk, "create", overwrite)


@plants(*COORDINATORS, within=40)
def log_by_replace(patch):
    def append(place, record):
        place.replace(log.record_name(record.number), log.encode(record))

    patch.setattr(log, "append", append)
    patch.setattr(log, "require_free", lambda place, number: None)


def repeated_commit_counts_again(patch):
    """Harmless while the coordinator compares what workers have with what it granted."""
    submit = Coordinator._submit

    def _submit(self, request, now):
        ended = self.state.ended.get(request.worker)
        if request.fence not in self._holders and ended and ended[0] == request.fence:
            request = replace(request, fence=ended[1])
        return submit(self, request, now)

    patch.setattr(Coordinator, "_submit", _submit)


@plants("cut off", within=40, table=BARE)
def repeated_commit_counts_again_in_the_log(patch):
    repeated_commit_counts_again(patch)
    disarm(patch)
    apply = state._apply_commit

    def _apply_commit(found, commit, record):
        heads = tuple(
            replace(head, base=found.heads[head.key].version if head.key in found.heads else 0)
            for head in commit.work.partitions
        )
        heads = tuple(
            replace(head, saved=replace(head.saved, version=head.base + 1)) for head in heads
        )
        return apply(found, replace(commit, work=replace(commit.work, partitions=heads)), record)

    patch.setitem(state._APPLY, state.Commit, _apply_commit)


@plants(within=20)
def stale_tables_stay_in_memory(patch):
    patch.setattr(PartitionCache, "forget", lambda self, keys=None: None)


@plants(within=20, table=BARE)
def stale_tables_stay_and_are_committed(patch):
    stale_tables_stay_in_memory(patch)
    disarm(patch)


@plants(within=40)
def delta_pushed_incrementally(patch):
    exchange = parameter_server.Sums.exchange

    def adding(self, header, delta):
        before = self._deltas.get(header.get("fence"))
        if delta.numel() and before is not None:
            delta = delta + before
        return exchange(self, header, delta)

    patch.setattr(parameter_server.Sums, "exchange", adding)


@plants(within=20)
def delta_stays_after_its_commit(patch):
    follow = parameter_server.Sums.follow
    patch.setattr(
        parameter_server.Sums,
        "follow",
        lambda self, committed, fences: follow(self, committed, {*fences, *self._deltas}),
    )


@plants(within=20)
def delta_counted_again_by_its_worker(patch):
    def committed(self, fence):
        self._saved, self._fence = None, fence

    patch.setattr(parameters.SharedParameters, "committed", committed)


@plants(*COORDINATORS, within=60)
def adopted_leases_are_not_compared(patch):
    def adopt(self, holder, holding):
        holder.known = True
        return True

    patch.setattr(Coordinator, "_may_have", adopt)


@plants(*COORDINATORS, within=40)
def buckets_granted_before_every_lease_has_spoken(patch):
    acquire = Coordinator._acquire

    def _acquire(self, request, now):
        for holder in self._holders.values():
            holder.known = True
        return acquire(self, request, now)

    patch.setattr(Coordinator, "_acquire", _acquire)


@plants(*WORKERS, within=60)
def undone_buckets_do_not_come_back(patch):
    def lose(self, holder):
        if self._scheduler is not None:
            self._scheduler.lost(holder.worker)

    patch.setattr(Board, "lose", lose)


@plants("power cut", within=20)
def records_are_not_synced(patch):
    sync = Disk._sync
    patch.setattr(Disk, "_sync", lambda self, n: None if n.startswith("log/") else sync(self, n))


@plants("power cut", within=20)
def tables_are_not_synced(patch):
    sync = Disk._sync
    patch.setattr(Disk, "_sync", lambda self, n: None if n.startswith("parts/") else sync(self, n))


@plants(*COORDINATORS, within=120)
def garbage_of_live_leases_is_removed(patch):
    patch.setattr(RunDirectory, "_dead", lambda self, name: True)


@plants(within=20)
def commit_names_one_partition_only(patch):
    flush = PartitionCache.flush
    patch.setattr(PartitionCache, "flush", lambda self: dict(list(flush(self).items())[:1]))


@plants(within=20, table=BARE)
def commit_names_one_partition_only_in_the_log(patch):
    commit_names_one_partition_only(patch)
    disarm(patch)


@plants(*COORDINATORS, within=60, table=BARE)
def renewal_says_what_was_so_before(patch):
    """As it once was: the request is made before it is this thread's turn to ask."""

    def renew(self, edges):
        request = session.Renew(self.fence, self._holding, edges)
        self._expect(request, session.Done)

    patch.setattr(session.Session, "renew", renew)
    patch.setattr(Board, "granted", lambda self, holder, holding: True)


@plants("second coordinator", "full disk", within=60)
def replaced_coordinator_stays(patch):
    patch.setattr(RunDirectory, "require_own", lambda self: None)


def seeds_until_caught(plant, within, faults) -> int:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(within):
            if run(seed, only=faults).wrong:
                return seed + 1
    raise AssertionError(f"{plant.__name__}: not caught in {within} seeds")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_shows(name):
    seeds_until_caught(*PLANTED[name])


@pytest.mark.parametrize("name", BARE)
def test_a_planted_defect_shows_without_the_defence_of_the_log(name):
    seeds_until_caught(*BARE[name])
