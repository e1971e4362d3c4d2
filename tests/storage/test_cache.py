"""The cache: whatever is held, prefetched and flushed, tables are what a dictionary would hold."""

import threading
import time

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from biggraph.errors import DivergenceError, StorageError
from biggraph.storage.cache import PartitionCache
from biggraph.storage.files import FileRef
from biggraph.storage.records import PartitionVersion
from biggraph.storage.table import EmbeddingTable
from biggraph.types import PartitionKey
from tests.storage.doubles import SCHEMA, working

KEYS = [PartitionKey("e", i) for i in range(5)]
SIZES = {key: 8 * (1 + key.index % 3) for key in KEYS}


class MemoryStore:
    """Tables as tuples of numbers, by version; notices two operations on one key at a time."""

    def __init__(self, delay=0.0):
        self.versions: dict[str, tuple[float, ...]] = {}
        self.newest: dict[PartitionKey, int] = {}
        self.busy: set[PartitionKey] = set()
        self.delay = delay
        self.fail: Exception | None = None
        self.on_load = lambda key: None
        self.log: list[tuple[str, int]] = []

    def load(self, key):
        return self._alone("load", key, lambda: self._table(key))

    def save(self, table):
        return self._alone("save", table.key, lambda: self._save(table))

    def discard(self, saved):
        del self.versions[saved.file.path]

    def _alone(self, name, key, work):
        assert key not in self.busy
        self.busy.add(key)
        time.sleep(self.delay)
        try:
            if self.fail is not None:
                raise self.fail
            self.log.append((name, key.index))
            return work()
        finally:
            self.busy.remove(key)

    def _table(self, key):
        self.on_load(key)
        version = self.newest.get(key, 0)
        values = self.versions[f"{key}/{version}"] if version else (0.0,) * (SIZES[key] // 8)
        return EmbeddingTable(key, torch.tensor(values), torch.zeros(len(values)), "")

    def file_bytes(self, key):
        return SIZES[key] // 2

    def _save(self, table):
        before = tuple(table.rows.tolist())
        time.sleep(self.delay)
        assert before == tuple(table.rows.tolist()), "changed while it was written"
        version = self.newest[table.key] = self.newest.get(table.key, 0) + 1
        self.versions[f"{table.key}/{version}"] = before
        return PartitionVersion(version, FileRef(f"{table.key}/{version}", "", 0), "")


def bump(tables):
    for table in tables.values():
        table.rows += 1


class Machine(RuleBasedStateMachine):
    """Against a plain dictionary, with tiny capacities and slow disks."""

    @initialize(capacity=st.integers(8, 90), delay=st.sampled_from([0.0, 0.0005]))
    def begin(self, capacity, delay):
        self.capacity = capacity
        self.store = MemoryStore(delay)
        self.cache = PartitionCache(self.store, capacity, SIZES.__getitem__)
        self.store.on_load = self.there_is_room
        self.expected = dict.fromkeys(KEYS, 0.0)
        self.changed: set[PartitionKey] = set()
        self.flushed: dict[PartitionKey, PartitionVersion] = {}
        self.held = 0

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
    def hold(self, keys):
        tables = self.cache.hold(keys)
        self.held = sum(SIZES[key] for key in set(keys))
        assert tables.keys() == set(keys)
        for key, table in tables.items():
            assert table.rows.tolist() == [self.expected[key]] * (SIZES[key] // 8)
            self.expected[key] += 1
        self.changed |= tables.keys()
        bump(tables)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=3))
    def prefetch(self, keys):
        self.cache.prefetch(keys)

    @rule()
    def flush(self):
        flushed = self.cache.flush()
        assert flushed.keys() == self.changed
        self.changed = set()
        self.flushed |= flushed
        for key, saved in self.flushed.items():
            assert saved.version == self.store.newest[key]
            values = self.store.versions[saved.file.path]
            assert values == (self.expected[key],) * (SIZES[key] // 8)

    @rule(keys=st.none() | st.lists(st.sampled_from(KEYS), max_size=3))
    def forget(self, keys):
        """What was flushed last is the newest again, as when a lease is lost."""
        self.cache.forget(keys)
        for key in KEYS if keys is None else keys:
            flushed = self.flushed.get(key)
            self.store.newest[key] = flushed.version if flushed else 0
            self.expected[key] = self.store.versions[flushed.file.path][0] if flushed else 0.0
            self.changed.discard(key)

    def there_is_room(self, key):
        """On the reading thread, when a table is about to take memory."""
        with self.cache._lock:
            used = sum(SIZES[k] for k in self.cache._tables)
        assert used + SIZES[key] <= max(self.capacity, sum(SIZES[k] for k in self.cache._pinned))

    @invariant()
    def memory_is_bounded(self):
        with self.cache._lock:
            used = sum(SIZES[k] for k in self.cache._tables)
        assert used <= max(self.capacity, self.held)

    @invariant()
    def flushed_versions_are_kept(self):
        assert {saved.file.path for saved in self.flushed.values()} <= self.store.versions.keys()

    def teardown(self):
        if hasattr(self, "cache"):
            self.flush()
            assert len(self.store.versions) <= len(self.flushed) + len(self.store.log)
            self.cache.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def cache(store):
    with PartitionCache(store, 40, SIZES.__getitem__) as cache:
        yield cache


def test_what_fits_is_read_once_and_written_at_flush_only(store):
    with PartitionCache(store, 1000, SIZES.__getitem__) as cache:
        for _ in range(3):
            for key in KEYS:
                bump(cache.hold([key]))
        assert len(store.log) == 5
        assert cache.flush().keys() == set(KEYS)
        assert cache.flush() == {}
        assert cache.statistics.loads == cache.statistics.saves == 5
        stored = sum(SIZES.values()) / 2
        assert cache.statistics.bytes_loaded == cache.statistics.bytes_saved == stored


def test_the_least_recently_used_table_leaves(store, cache):
    for index in (0, 1, 0, 2):  # 8, 16 and 24 bytes of 40
        cache.hold([KEYS[index]])
    cache.flush()
    assert ("save", 1) in store.log
    cache.hold([KEYS[0]])
    assert store.log.count(("load", 0)) == 1


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(("needed_last", "order"), [(0, [7, 1, 2]), (1, [1, 7, 2])])
def test_the_table_needed_last_leaves_where_that_is_known(store, needed_last, order, prefetch):
    uses = {KEYS[i]: use for i, use in enumerate([*order, 0, 0])}
    with PartitionCache(store, 40, SIZES.__getitem__, uses.__getitem__) as cache:
        for index in (0, 1, 3):  # 8, 16 and 8 bytes of 40
            bump(cache.hold([KEYS[index]]))
        if prefetch:
            cache.prefetch([KEYS[4]])
        bump(cache.hold([KEYS[4]]))  # 16 more
        cache.hold([KEYS[needed_last]])
        for index in (0, 1):
            assert store.log.count(("load", index)) == 1 + (index == needed_last)


def test_prefetch_reads_ahead_where_there_is_room_only(store, cache):
    cache.hold([KEYS[0]])
    cache.prefetch([KEYS[1]])
    cache.hold([KEYS[1]])
    assert store.log == [("load", 0), ("load", 1)]
    cache.hold([KEYS[1], KEYS[4]])  # 32 of 40
    cache.prefetch([KEYS[2]])
    cache.flush()
    assert ("load", 2) not in store.log


def test_prefetch_makes_room_by_writing_behind(store, cache):
    cache.hold([KEYS[2]])  # 24 of 40
    cache.hold([KEYS[1]])  # 40
    cache.prefetch([KEYS[4]])  # 16 more: the first has to leave
    tables = cache.hold([KEYS[4]])
    assert store.log.index(("save", 2)) < store.log.index(("load", 4))
    assert tables[KEYS[4]].rows.tolist() == [0.0, 0.0]


def test_a_table_being_written_is_taken_back_without_reading():
    store = MemoryStore(delay=0.02)
    with PartitionCache(store, 40, SIZES.__getitem__) as cache:
        bump(cache.hold([KEYS[2]]))
        cache.hold([KEYS[1]])
        cache.prefetch([KEYS[4]])
        assert cache.hold([KEYS[2]])[KEYS[2]].rows.tolist() == [1.0] * 3
    assert store.log.count(("load", 2)) == 1


def test_what_one_call_needs_is_allowed_beyond_capacity(store, cache):
    assert cache.hold(KEYS).keys() == set(KEYS)
    cache.hold(KEYS[:1])
    cache.flush()
    assert store.log.count(("save", 4)) == 1
    assert sum(SIZES[key] for key in cache._tables) <= 40


@pytest.mark.parametrize("call", ["hold", "prefetch", "flush"])
def test_an_error_of_the_background_surfaces_at_the_next_call(store, cache, call):
    bump(cache.hold([KEYS[2]]))
    cache.hold([KEYS[1]])
    store.fail = StorageError("disk full")
    cache.prefetch([KEYS[4]])
    while not all(w.done() for w in [*cache._writes.values(), *cache._reads.values()]):
        time.sleep(0.001)
    with pytest.raises(StorageError, match="disk full"):
        getattr(cache, call)(*([] if call == "flush" else [KEYS[:1]]))
    store.fail = None
    try:
        flushed = cache.flush()
    except StorageError:  # the read failed as well
        flushed = cache.flush()
    assert KEYS[2] in flushed
    assert store.versions[flushed[KEYS[2]].file.path] == (1.0,) * 3


def test_nothing_starts_before_it_is_needed(store):
    before = threading.active_count()
    cache = PartitionCache(store, 40, SIZES.__getitem__)
    assert threading.active_count() == before
    cache.close()


def test_a_ruined_table_is_not_written(tmp_path):
    key = SCHEMA.partition_keys()[0]
    with working(tmp_path / "run") as (_, cache):
        cache.hold([key])[key].rows[1, 1] = float("nan")
        with pytest.raises(DivergenceError, match="partition user/0"):
            cache.flush()
        assert not list((tmp_path / "run/parts").rglob("*.h5"))


def test_a_version_stays_known_where_the_one_it_replaced_cannot_be_removed(
    store, cache, monkeypatch
):
    def refuse(saved):
        raise StorageError("cannot remove")

    monkeypatch.setattr(store, "discard", refuse)
    # The error surfaces at whichever call comes after the second version was written.
    with pytest.raises(StorageError, match="cannot remove"):  # noqa: PT012
        for _ in range(2):  # the second version replaces the first before any flush
            bump(cache.hold([KEYS[2]]))
            cache.hold([KEYS[1]])
            cache.prefetch([KEYS[4]])  # makes it leave
        cache.flush()
    assert store.versions[cache.flush()[KEYS[2]].file.path] == (2.0,) * 3


# Forgetting


def value_of(cache, key):
    return cache.hold([key])[key].rows.tolist()[0]


@pytest.mark.parametrize("keys", [None, KEYS[:1]])
def test_a_changed_table_that_is_forgotten_is_not_written(store, cache, keys):
    bump(cache.hold([KEYS[0]]))
    cache.flush()
    bump(cache.hold([KEYS[0]]))
    cache.forget(keys)
    assert cache.flush() == {}
    assert store.log == [("load", 0), ("save", 0)]
    assert value_of(cache, KEYS[0]) == 1.0
    assert store.log.count(("load", 0)) == 2


def test_only_what_is_named_is_forgotten(store, cache):
    bump(cache.hold(KEYS[:2]))
    cache.forget([KEYS[0], KEYS[3]])
    assert cache.chains().keys() == {KEYS[1]}
    flushed = cache.flush()
    assert flushed.keys() == {KEYS[1]}
    assert store.versions[flushed[KEYS[1]].file.path] == (1.0, 1.0)


def test_memory_of_what_is_forgotten_is_free_again(store, cache):
    bump(cache.hold([KEYS[2], KEYS[1]]))  # 40 of 40
    cache.forget([KEYS[2]])
    cache.prefetch([KEYS[2]])  # there is room for it beside the other one
    cache.hold([KEYS[2]])
    assert store.log == [("load", 2), ("load", 1), ("load", 2)]


@pytest.mark.parametrize("keys", [None, [KEYS[2]]])
def test_versions_that_were_saved_and_not_flushed_are_forgotten(store, cache, keys):
    """A table that left memory was written, and counts for nothing when its lease is lost."""
    bump(cache.hold([KEYS[2]]))
    bump(cache.hold([KEYS[1], KEYS[4]]))  # the first leaves
    assert ("save", 2) in store.log
    assert KEYS[2] not in cache.chains()
    cache.forget(keys)
    store.newest.clear()  # the store forgets as well
    assert cache.flush().keys() == (set() if keys is None else {KEYS[1], KEYS[4]})
    assert value_of(cache, KEYS[2]) == 0.0
    assert cache.flush().keys() == {KEYS[2]}


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_a_read_that_was_begun_is_forgotten_too(delay):
    store = MemoryStore(delay)
    with PartitionCache(store, 1000, SIZES.__getitem__) as cache:
        cache.hold([KEYS[0]])
        cache.prefetch([KEYS[1]])
        cache.forget([KEYS[1]])
        store.newest[KEYS[1]] = 7
        store.versions[f"{KEYS[1]}/7"] = (5.0, 5.0)  # somebody else's
        assert value_of(cache, KEYS[1]) == 5.0


def test_a_read_that_waits_for_room_is_not_begun_for_what_is_forgotten():
    store = MemoryStore(delay=0.02)
    with PartitionCache(store, 40, SIZES.__getitem__) as cache:
        cache.hold([KEYS[2]])
        cache.hold([KEYS[1]])  # 40 of 40
        cache.prefetch([KEYS[4]])  # waits for the first to be written
        cache.forget([KEYS[4]])
        cache.flush()
        time.sleep(0.05)
        assert ("load", 4) not in store.log
        assert value_of(cache, KEYS[4]) == 0.0


def test_failures_of_what_is_forgotten_do_not_matter(store, cache):
    bump(cache.hold([KEYS[2]]))
    cache.hold([KEYS[1]])
    store.fail = StorageError("gone")
    cache.prefetch([KEYS[4]])  # the first has to be written for it
    cache.forget([KEYS[2]])
    cache.prefetch([KEYS[0], KEYS[4]])
    cache.forget([KEYS[0], KEYS[4]])
    store.fail = None
    assert cache.flush().keys() == {KEYS[1]}
    assert value_of(cache, KEYS[2]) == value_of(cache, KEYS[4]) == 0.0
    assert ("save", 2) not in store.log


def test_failures_of_what_is_kept_still_surface(store, cache):
    cache.hold([KEYS[0]])
    store.fail = StorageError("disk full")
    cache.prefetch([KEYS[1]])
    cache.forget([KEYS[0]])
    with pytest.raises(StorageError, match="disk full"):
        cache.hold([KEYS[1]])


def test_chains_are_those_of_the_tables_in_memory(cache):
    assert cache.chains() == {}
    tables = cache.hold(KEYS[:2])
    assert cache.chains() == {KEYS[0]: "", KEYS[1]: ""}
    tables[KEYS[0]].chain = "advanced"
    assert cache.chains() == {KEYS[0]: "advanced", KEYS[1]: ""}
    cache.hold([KEYS[2], KEYS[4]])  # 40 of 40
    assert cache.chains().keys() == {KEYS[2], KEYS[4]}
