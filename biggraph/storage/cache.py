"""The tables that are in memory: a bounded cache over a partition store.

One thread uses the cache; one thread of its own reads ahead and one writes behind. A table that
has to leave is written first and stays in memory until that is done; asked for meanwhile, it is
taken back without reading. A read begins only when there is room for it: the writing thread begins
those that wait for a table to be gone, so `_tables`, `_leaving`, `_wishes` and `_reads` are under
a lock. What a background thread raises surfaces at the next call. Knows nothing of files, buckets
or commits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from biggraph.errors import BigGraphError
from biggraph.storage.records import PartitionVersion
from biggraph.storage.store import PartitionStore
from biggraph.storage.table import EmbeddingTable
from biggraph.types import PartitionKey

T = TypeVar("T")


@dataclass(slots=True)
class CacheStatistics:
    """What the cache did since it was made.

    Args:
        loads: tables read or made.
        saves: tables written.
        bytes_loaded: size in files of the tables read or made.
        bytes_saved: size in files of the tables written.
        wait_s: seconds in which the caller waited for reading and writing.
    """

    loads: int = 0
    saves: int = 0
    bytes_loaded: int = 0
    bytes_saved: int = 0
    wait_s: float = 0.0


class PartitionCache:
    """Keeps tables in memory, as many as fit.

    Args:
        store: where tables come from and go to.
        capacity_bytes: of all tables in memory, those being read and written included. What one
            call of `hold` asks for is allowed in any case.
        size_of: bytes of the table of a partition.
        next_use: when a partition is needed next, larger for later. The table that is needed last
            leaves first; of equals, the one that was used least recently. None: nobody knows.
    """

    def __init__(
        self,
        store: PartitionStore,
        capacity_bytes: int,
        size_of: Callable[[PartitionKey], int],
        next_use: Callable[[PartitionKey], int] | None = None,
    ) -> None:
        self._store, self._capacity, self._size_of = store, capacity_bytes, size_of
        self._next_use = next_use or (lambda key: 0)
        self._lock = threading.Lock()
        self._tables: dict[PartitionKey, EmbeddingTable] = {}  # least recently used first
        self._pinned: frozenset[PartitionKey] = frozenset()
        self._dirty: set[PartitionKey] = set()  # may differ from the newest version saved
        self._leaving: set[PartitionKey] = set()  # to be dropped when written
        self._wishes: list[PartitionKey] = []  # to be read when there is room
        self._reads: dict[PartitionKey, Future[EmbeddingTable]] = {}
        self._writes: dict[PartitionKey, Future[PartitionVersion]] = {}
        self._unclaimed: dict[PartitionKey, PartitionVersion] = {}  # saved since the last flush
        self._reader = ThreadPoolExecutor(1, "biggraph-read")  # starts with its first task
        self._writer = ThreadPoolExecutor(1, "biggraph-write")
        self.statistics = CacheStatistics()

    def hold(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, EmbeddingTable]:
        """Return the tables of these partitions and keep them in memory until the next call.

        They count as changed: the caller trains them. Others may leave memory.

        Raises:
            FormatError: a file is damaged.
            StorageError: the file system refused.
            DivergenceError: a table that was to be written is not finite.
        """
        wanted = list(dict.fromkeys(keys))
        self._collect()
        self._pinned = frozenset(wanted)
        with self._lock:
            self._wishes = []  # from here on only this thread begins reads
            self._leaving -= self._pinned
        missing = self._missing(wanted)
        self._make_room(self._total(missing))
        for key in missing:
            self._read(key)
        for key in wanted:
            self._await_read(key)
            self._await_write(key)  # nobody may change a table that is being written
            with self._lock:
                self._tables[key] = self._tables.pop(key)  # most recently used
        self._dirty |= self._pinned
        return {key: self._tables[key] for key in wanted}

    def prefetch(self, keys: Iterable[PartitionKey]) -> None:
        """Begin to read these partitions, as far as capacity allows beside the tables held.

        Raises:
            StorageError, FormatError, DivergenceError: from work in the background.
        """
        wanted = list(dict.fromkeys(keys))
        self._collect()
        spare = self._capacity - self._total(self._pinned)
        fitting = []
        for key in wanted:
            spare -= 0 if key in self._pinned else self._size_of(key)
            if spare < 0:
                break
            fitting.append(key)
        with self._lock:
            self._leaving -= set(fitting)
            self._wishes = []
            missing = self._missing(fitting)
        self._evict(self._total(missing), keep=self._pinned | set(fitting))
        with self._lock:
            self._wishes = missing
            self._begin_reads()

    def flush(self) -> dict[PartitionKey, PartitionVersion]:
        """Write every changed table; they stay in memory, unchanged until `hold` is called.

        Returns:
            The newest version of each partition changed since the last flush.

        Raises:
            DivergenceError: a table is not finite.
            StorageError: the file system refused.
        """
        self._collect()
        for key in sorted(self._dirty):
            self._write(key)
        for key in list(self._writes):
            self._await_write(key)
        flushed, self._unclaimed = self._unclaimed, {}
        return flushed

    def chains(self) -> dict[PartitionKey, str]:
        """Return the chain of every table in memory."""
        with self._lock:
            return {key: table.chain for key, table in self._tables.items()}

    def forget(self, keys: Iterable[PartitionKey] | None = None) -> None:
        """Drop tables without writing them, because they have become something else elsewhere.

        Args:
            keys: of partitions; None for all. What was saved of them and not flushed is dropped
                too; its files stay until somebody collects garbage.
        """
        with self._lock:
            self._wishes = []
            known = self._tables.keys() | self._reads.keys() | self._writes.keys()
        known |= self._unclaimed.keys()  # of tables that are in memory no more
        forgotten = known if keys is None else known.intersection(keys)
        for key in sorted(forgotten):
            # What a read or a write of it came to no longer matters, be it an error.
            for await_it in (self._await_read, self._await_write):
                with suppress(BigGraphError):
                    await_it(key)
            with self._lock:
                self._tables.pop(key, None)
                self._leaving.discard(key)
            self._dirty.discard(key)
            self._unclaimed.pop(key, None)
        self._pinned -= forgotten

    def close(self) -> None:
        """End the background threads; what was not flushed is lost."""
        with self._lock:
            self._wishes = []
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)

    def __enter__(self) -> PartitionCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _bytes_used(self) -> int:
        """Return bytes of all tables in memory, those being written and to be read included."""
        return self._total(self._tables) + self._total(self._reads)

    def _total(self, keys: Iterable[PartitionKey]) -> int:
        return sum(map(self._size_of, keys))

    def _missing(self, keys: Iterable[PartitionKey]) -> list[PartitionKey]:
        return [k for k in keys if k not in self._tables and k not in self._reads]

    def _make_room(self, needed: int) -> None:
        """Let unpinned tables leave until `needed` bytes more fit, waiting for them to be gone."""
        while not self._evict(needed, keep=self._pinned) and (
            unwanted := self._reads.keys() - self._pinned
        ):
            self._await_read(min(unwanted))
        while True:
            with self._lock:
                leaving = min(self._leaving, default=None)
                if leaving is None or self._bytes_used() + needed <= self._capacity:
                    return
            self._await_write(leaving)

    def _evict(self, needed: int, keep: Iterable[PartitionKey]) -> bool:
        """Let the tables needed last leave; tell whether `needed` more will fit then."""
        with self._lock:
            candidates = [k for k in self._tables if k not in keep and k not in self._leaving]
            staying = self._bytes_used() - self._total(self._leaving)
        candidates.sort(key=self._next_use, reverse=True)
        for key in candidates:
            if staying + needed <= self._capacity:
                break
            staying -= self._size_of(key)
            self._leave(key)
        return staying + needed <= self._capacity

    def _leave(self, key: PartitionKey) -> None:
        """Drop a table, at once or when it is written."""
        self._await_write(key)
        with self._lock:
            if key in self._dirty:
                self._leaving.add(key)
            else:
                del self._tables[key]
        if key in self._dirty:
            self._write(key)

    def _begin_reads(self) -> None:
        """Begin the reads that wait, as far as there is room (under the lock)."""
        while self._wishes:
            if self._bytes_used() + self._size_of(self._wishes[0]) > self._capacity:
                return
            self._read(self._wishes.pop(0))

    def _read(self, key: PartitionKey) -> None:
        self._reads[key] = self._reader.submit(self._store.load, key)

    def _write(self, key: PartitionKey) -> None:
        """Begin to write a table; an earlier write of it comes first."""
        self._await_write(key)
        self._dirty.discard(key)
        self._writes[key] = self._writer.submit(self._save, self._tables[key])

    def _save(self, table: EmbeddingTable) -> PartitionVersion:
        """Write a table and drop it if it is still to leave (on the writing thread)."""
        saved = self._store.save(table)
        with self._lock:
            if table.key in self._leaving:
                self._leaving.discard(table.key)
                del self._tables[table.key]
                self._begin_reads()
        return saved

    def _collect(self) -> None:
        """Take in what the background threads have done; raise what they raised."""
        for key in [k for k, write in self._writes.items() if write.done()]:
            self._await_write(key)
        with self._lock:
            finished = [k for k, read in self._reads.items() if read.done()]
        for key in finished:
            self._await_read(key)

    def _await_read(self, key: PartitionKey) -> None:
        if key not in self._reads:
            return
        try:
            table = self._wait(self._reads[key])
        except BaseException:
            with self._lock:
                del self._reads[key]
            raise
        with self._lock:
            del self._reads[key]
            self._tables[key] = table
        self.statistics.loads += 1
        self.statistics.bytes_loaded += self._store.file_bytes(key)

    def _await_write(self, key: PartitionKey) -> None:
        if key not in self._writes:
            return
        try:
            saved = self._wait(self._writes.pop(key))
        except BaseException:
            with self._lock:
                self._leaving.discard(key)
            self._dirty.add(key)
            raise
        self.statistics.saves += 1
        self.statistics.bytes_saved += self._store.file_bytes(key)
        replaced, self._unclaimed[key] = self._unclaimed.get(key), saved
        if replaced is not None:
            self._store.discard(replaced)

    def _wait(self, future: Future[T]) -> T:
        start = time.perf_counter()
        try:
            return future.result()
        finally:
            self.statistics.wait_s += time.perf_counter() - start
