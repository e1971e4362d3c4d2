"""How long an epoch takes with many workers: the shipping scheduler, modelled machines.

A discrete-event simulation: `BucketScheduler` decides, every other part is a number below. So it
answers what waiting, loads, commits and the shared storage cost, and what another number of
partitions would change; it knows nothing of quality.

Prints one JSON line for each simulated epoch and tables at the end: a billion entities with 10
and 100 edges each on 1 to 64 workers; storage, prefetching and partitions at 16 workers; predicted
against published times of PyTorch-BigGraph; processor time of `acquire` and `peek`.
"""

import argparse
import heapq
import json
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count, product

from biggraph.log import align
from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler, EpochDone, Grant, Partitions
from biggraph.types import Bucket, PartitionKey

# Lerer et al., "PyTorch-BigGraph: a large-scale graph embedding system", SysML 2019, and its
# README: "over 1 million edges/s per machine with 100 negatives"; TCP reaches about 1 GB/s on
# their 50 Gb/s Ethernet.
EDGES_PER_S = 1e6
LINK = 1e9  # bytes/s in or out of a machine
DISK = (
    0.9e9  # bytes/s of one NVMe disk, HDF5 read and written with fsync, as measured for the store
)
SHARED = 10e9  # bytes/s of the shared storage, all machines together: a small parallel file system
COMMIT_S = 0.02  # one log record on shared storage (0.6 ms on a local disk, NFS is slower)
POLL_S = 1.0  # a worker that waits asks again
DIMENSION = 100
ROW_BYTES = 4 * DIMENSION + 4  # float32, one row-wise Adagrad sum
EDGE_BYTES = 12  # three int32
SLOTS = 4  # partitions in a worker's memory

# Hours on that many machines with that many partitions, Tables 3 and 4 of the same paper: full
# Freebase and Twitter, unpartitioned on one machine. Ten epochs, D = 100 and 90 % are assumed.
PUBLISHED = {
    "freebase": (121.2e6, 0.9 * 2.725e9, {1: (1, 30.0), 2: (4, 23.0), 4: (8, 13.0), 8: (16, 7.7)}),
    "twitter": (41.65e6, 0.9 * 1.468e9, {1: (1, 18.0), 2: (4, 9.8), 4: (8, 6.5), 8: (16, 3.4)}),
}
PUBLISHED_EPOCHS = 10


@dataclass(frozen=True)
class Setting:
    """One simulated epoch.

    Args:
        entities: of one type, in partitions of equal size.
        edges: in buckets of equal size.
        partitions: of the entity type.
        workers: machines that train.
        storage: "shared": all transfers share SHARED fairly, each at most LINK; "nodes": each
            machine at DISK, from wherever.
        prefetch: read what `peek` names while training.
        edges_per_s: of one worker.
    """

    entities: float
    edges: float
    partitions: int
    workers: int
    storage: str = "shared"
    prefetch: bool = True
    edges_per_s: float = EDGES_PER_S


class Engine:
    """Time, and processes that are generators: they yield seconds or a transfer to wait for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in `seconds`."""
        heapq.heappush(self._events, (self.now + seconds, next(self._number), action))

    def start(self, process: "Process") -> None:
        """Run a process up to its next wait."""
        wait = next(process, None)
        if isinstance(wait, Transfer) and not wait.done:
            wait.waiting.append(lambda: self.start(process))
        elif wait is not None:
            self.at(0.0 if isinstance(wait, Transfer) else wait, lambda: self.start(process))

    def run(self) -> None:
        """Let time pass until nothing is left to happen."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


@dataclass
class Transfer:
    """Bytes on their way."""

    done: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)


Process = Generator[float | Transfer, None, None]


class Pipe:
    """Bandwidth that transfers share equally, each at most `each` (processor sharing).

    Counts the bytes that every transfer has moved since the beginning: as all move alike, a
    transfer ends when that count passes its size plus the count at its start.
    """

    def __init__(self, engine: Engine, total: float, each: float) -> None:
        self._engine, self._total, self._each = engine, total, each
        self._moved, self._since, self._plan = 0.0, 0.0, 0
        self._ends: list[tuple[float, int, Transfer]] = []
        self._number = count()

    def move(self, size: float) -> Transfer:
        """Start a transfer of `size` bytes."""
        self._pass_time()
        transfer = Transfer()
        heapq.heappush(self._ends, (self._moved + size, next(self._number), transfer))
        self._plan_next()
        return transfer

    def _rate(self) -> float:
        return min(self._each, self._total / max(len(self._ends), 1))

    def _pass_time(self) -> None:
        self._moved += (self._engine.now - self._since) * self._rate()
        self._since = self._engine.now

    def _plan_next(self) -> None:
        self._plan += 1
        if self._ends:
            plan, left = self._plan, max(self._ends[0][0] - self._moved, 0.0)
            self._engine.at(left / self._rate(), lambda: self._end(plan))

    def _end(self, plan: int) -> None:
        if plan != self._plan:
            return  # a transfer that began since then changed the rate
        self._pass_time()
        _, _, transfer = heapq.heappop(self._ends)
        transfer.done = True
        self._plan_next()
        for action in transfer.waiting:
            action()


class Worker:
    """One machine: asks, commits what it gives back, reads, trains."""

    def __init__(self, name: str, epoch: "Epoch", pipe: Pipe) -> None:
        self.name, self.epoch, self.pipe = name, epoch, pipe
        self.memory: dict[PartitionKey, int] = {}  # version of each table, the latest used last
        self.unsaved: set[PartitionKey] = set()
        self.ahead: tuple[Bucket | None, Transfer] = (None, Transfer(done=True))
        self.trained_s = self.io_s = 0.0

    def work(self) -> Process:
        """Train until the epoch is done."""
        epoch, engine = self.epoch, self.epoch.engine
        while True:
            answer = epoch.scheduler.acquire(self.name, self._current())
            began = engine.now
            if answer.evict or (isinstance(answer, EpochDone) and self.unsaved):
                yield from self._commit(answer.evict)
            if isinstance(answer, Grant):
                yield from self._load(answer.bucket)
                self.io_s += engine.now - began
                yield from self._train(answer.bucket)
            elif isinstance(answer, EpochDone):
                self.io_s += engine.now - began
                return
            else:
                self.io_s += engine.now - began
                yield POLL_S

    def _current(self) -> Partitions:
        """Return the partitions in memory that nobody has trained since."""
        versions = self.epoch.versions
        return frozenset(key for key, version in self.memory.items() if version == versions[key])

    def _commit(self, evict: Partitions) -> Process:
        """Write all that was trained since the last commit, name it in the log, give back."""
        yield self.pipe.move(len(self.unsaved) * self.epoch.table_bytes)
        yield COMMIT_S
        self.unsaved.clear()
        self.epoch.ended = self.epoch.engine.now
        self.epoch.scheduler.give_back(self.name, evict)

    def _load(self, bucket: Bucket) -> Process:
        guess, transfer = self.ahead
        self.epoch.hits += guess == bucket
        if guess == bucket:
            yield transfer
        else:
            yield self._read(bucket)
        yield from self._remember(bucket)

    def _read(self, bucket: Bucket) -> Transfer:
        missing = self.epoch.needs[bucket] - self._current()
        self.epoch.loads += len(missing)
        edges = self.epoch.edges_of_bucket * EDGE_BYTES
        return self.pipe.move(len(missing) * self.epoch.table_bytes + edges)

    def _remember(self, bucket: Bucket) -> Process:
        """Put tables into memory; where it is full, the longest unused leave it."""
        for key in self.epoch.needs[bucket]:
            self.memory.pop(key, None)
            self.memory[key] = self.epoch.versions[key]
        leaving = set(list(self.memory)[:-SLOTS])
        for key in leaving:
            del self.memory[key]
        if leaving & self.unsaved:  # only a worker alone holds more than its bucket needs
            yield self.pipe.move(len(leaving & self.unsaved) * self.epoch.table_bytes)
        self.unsaved -= leaving

    def _train(self, bucket: Bucket) -> Process:
        epoch = self.epoch
        seconds = epoch.edges_of_bucket / epoch.setting.edges_per_s
        guess = epoch.scheduler.peek(self.name, self._current()) if epoch.setting.prefetch else None
        self.ahead = (None, Transfer(done=True)) if guess is None else (guess, self._read(guess))
        self.trained_s += seconds
        yield seconds
        for key in epoch.needs[bucket]:
            epoch.versions[key] += 1
            self.memory[key] = epoch.versions[key]
        self.unsaved |= epoch.needs[bucket]
        epoch.scheduler.finish(self.name)


class Epoch:
    """What the workers of one simulated epoch share."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.engine = setting, Engine()
        partitions = range(setting.partitions)
        buckets = [Bucket(i, j) for i, j in product(partitions, repeat=2)]
        self.needs = {b: frozenset(PartitionKey("entity", i) for i in b) for b in buckets}
        order = ORDERS["inside_out"](buckets, 0)
        self.scheduler = BucketScheduler(order, self.needs, affinity=True)
        self.versions = {PartitionKey("entity", i): 0 for i in partitions}
        self.table_bytes = setting.entities / setting.partitions * ROW_BYTES
        self.edges_of_bucket = setting.edges / len(buckets)
        self.loads = self.hits = 0
        self.ended = 0.0  # when the last commit was

    def run(self) -> dict[str, float]:
        """Simulate, and return times in seconds and shares of the workers' time."""
        shared = Pipe(self.engine, SHARED, LINK)
        workers = []
        for i in range(self.setting.workers):
            pipe = shared if self.setting.storage == "shared" else Pipe(self.engine, DISK, DISK)
            workers.append(Worker(f"worker-{i}", self, pipe))
        for worker in workers:
            self.engine.start(worker.work())
        self.engine.run()
        total = self.ended * len(workers)
        compute, io = (sum(getattr(w, name) for w in workers) for name in ("trained_s", "io_s"))
        buckets = len(self.needs)
        result = {
            "epoch_s": self.ended,
            "compute": compute / total,
            "io": io / total,
            "idle": max(1 - (compute + io) / total, 0.0),
            "loads_per_bucket": self.loads / buckets,
            "guessed": self.hits / buckets,
            "gb_per_worker": min(SLOTS, self.setting.partitions) * self.table_bytes / 1e9,
        }
        return {name: round(value, 4) for name, value in result.items()}


def simulate(setting: Setting) -> dict[str, float]:
    """Return what one epoch costs; prints it as a JSON line."""
    result = Epoch(setting).run()
    print(json.dumps(vars(setting) | result), flush=True)
    return result


HEADER = ["edges", "workers", "partitions", "storage", "prefetch", "epoch s", "compute", "I/O"]
HEADER += ["idle", "loads/bucket", "guessed", "GB/worker", "speed-up"]


def row(setting: Setting, result: dict[str, float], alone: float) -> list[object]:
    """Return one line of a table."""
    prefetch = "yes" if setting.prefetch else "no"
    place = [setting.workers, setting.partitions, setting.storage, prefetch]
    shares = [f"{result[name]:.2f}" for name in list(result)[1:]]
    speedup = f"{alone / result['epoch_s']:.1f}"
    return [f"{setting.edges:.0e}", *place, f"{result['epoch_s']:,.0f}", *shares, speedup]


def scaling(entities: float, all_edges: list[float], workers: list[int], most: int) -> str:
    """Return the table of times by workers, with two and three partitions for each worker."""
    rows = []
    for edges in all_edges:
        alone = 0.0
        for number in workers:
            for partitions in sorted({min(max(16, k * number), most) for k in (2, 3)}):
                setting = Setting(entities, edges, partitions, number)
                result = simulate(setting)
                alone = alone or result["epoch_s"]
                rows.append(row(setting, result, alone))
    return align(rows, header=HEADER)


def choices(entities: float, edges: float) -> str:
    """Return the table of storage, prefetching and partitions at 16 workers."""
    modes = product(("shared", "nodes"), (False, True))
    settings = [Setting(entities, edges, 64, 16, *mode) for mode in modes]
    settings += [Setting(entities, edges, many, 16, "nodes") for many in (16, 24, 32, 48)]
    results = [(setting, simulate(setting)) for setting in settings]
    alone = results[0][1]["epoch_s"]
    return align([row(*result, alone) for result in results], header=HEADER)


def against_published() -> str:
    """Return predicted and published times; only the rate on one machine is fitted."""
    rows = []
    for name, (entities, edges, hours) in PUBLISHED.items():
        rate = edges * PUBLISHED_EPOCHS / (3600 * hours[1][1])
        times = {}
        for machines, (partitions, published) in hours.items():
            setting = Setting(entities, edges, partitions, machines, "nodes", False, rate)
            times[machines] = (published, simulate(setting)["epoch_s"] * PUBLISHED_EPOCHS / 3600)
            cells = [f"{hour:.1f}" for hour in times[machines]]
            for first in (1, min(machines, 2)):  # how many times faster than one machine, than two
                paper, model = (x / y for x, y in zip(times[first], times[machines], strict=True))
                cells += [f"{paper:.2f}", f"{model:.2f}", f"{model / paper - 1:+.0%}"]
            rows.append((name, machines, partitions, *cells))
    header = ["graph", "machines", "partitions", "published h", "predicted h"]
    header += ["published / 1", "predicted / 1", "off", "published / 2", "predicted / 2", "off"]
    return align(rows, header=header)


def latency(partitions: int, owners: list[int]) -> str:
    """Return processor time of calls over the first epoch of a run, in milliseconds."""
    rows = []
    for number in owners:
        needs = Epoch(Setting(1, 1, partitions, number)).needs
        order = ORDERS["inside_out"](list(needs), 0)
        scheduler = BucketScheduler(order, needs, affinity=True, trained=frozenset())
        times: dict[str, list[float]] = {"acquire": [], "peek": []}
        while len(scheduler.done) < len(order):
            for name in [f"worker-{i}" for i in range(number)]:
                take_turn(scheduler, name, times)
        cells = []
        for measured in times.values():
            p99 = statistics.quantiles(measured, n=100)[-1]
            found = (statistics.median(measured), p99, max(measured))
            cells += [f"{1e3 * seconds:.2f}" for seconds in found]
        rows.append((number, *cells))
        print(json.dumps({"owners": number, "ms": cells}), flush=True)
    measures = [f"{call} {value}" for call in times for value in ("median", "p99", "max")]
    return align(rows, header=["owners", *measures])


def take_turn(scheduler: BucketScheduler, name: str, times: dict[str, list[float]]) -> None:
    """Finish, acquire, give back and peek, noting the processor time of two of them."""
    if scheduler.running(name):
        scheduler.finish(name)
    began = time.thread_time()
    answer = scheduler.acquire(name)
    times["acquire"].append(time.thread_time() - began)
    scheduler.give_back(name, answer.evict)
    began = time.thread_time()
    scheduler.peek(name)
    times["peek"].append(time.thread_time() - began)


def main() -> None:
    """Run every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=float, default=1e9)
    parser.add_argument("--edges", type=float, nargs="+", default=[1e10, 1e11])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--most-partitions", type=int, default=128)
    asked = parser.parse_args()
    tables = [
        scaling(asked.entities, asked.edges, asked.workers, asked.most_partitions),
        choices(asked.entities, asked.edges[-1]),
        against_published(),
        latency(asked.most_partitions, [1, 8, 32, 64]),
    ]
    print("", *tables, sep="\n\n")


if __name__ == "__main__":
    main()
