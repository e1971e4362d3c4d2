"""A disk that all processes share, with an adversary: `storage.place.Place` in memory.

Each operation takes time, in parts: what another process sees between them, and what is there after
a kill or a power cut between them, is what a folder would show. A name is durable when its folder
was synced after it was linked, as `fsops.publish` does it. What was not synced yet may be lost, but
not a change of a folder alone that came before another which is kept: file systems with a journal
promise that much.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from biggraph.errors import StorageError
from biggraph.storage.place import check_inside, wrong_size
from tests.dist.simulation.doubles import Uuid
from tests.dist.simulation.world import Process, world


class Disk:
    """The one disk; every process uses this very object."""

    def __init__(self, *, locks: bool) -> None:
        self.files: dict[str, bytes] = {}
        self.durable: dict[str, bytes] = {}
        self.pending: list[tuple[str, bytes | None]] = []  # changes that are not durable
        self.locks = locks
        self.owner: Process | None = None
        self.delay = 0.002
        self.full = False
        self.failing = 0.0  # share of folder syncs that fail though the name is there
        self.observers: list[Callable[[str, bytes], None]] = []

    def __str__(self) -> str:
        return "disk"

    def power_cut(self) -> None:
        """Lose what was not made durable: in each folder, all changes after some moment."""
        rng = world().rng
        for folder in sorted({name.rpartition("/")[0] for name, _ in self.pending}):
            changes = [change for change in self.pending if change[0].rpartition("/")[0] == folder]
            for name, data in changes[: rng.randint(0, len(changes))]:
                if data and name.endswith(".tmp"):
                    data = data[: rng.randrange(len(data))]
                self._persist(name, data)
        self.files, self.pending, self.owner = dict(self.durable), [], None

    def where(self, name: str) -> str:
        return f"disk/{name}"

    def exists(self) -> bool:
        return True

    def check_put_if_absent(self) -> None:
        self._turn("read")

    def lock(self) -> Callable[[], None]:
        if not self.locks:
            return lambda: None
        me = world().process
        if self.owner is not None and not self.owner.dead:
            raise StorageError("disk: another process writes this run")
        self.owner = me

        def unlock() -> None:
            if self.owner is me:
                self.owner = None

        return unlock

    def make_folder(self, name: str) -> None:
        self._turn("write")

    def remove_folder(self, name: str) -> None:
        self._turn("write")

    @contextmanager
    def create(self, name: str, room: int) -> Iterator[io.BufferedIOBase]:
        check_inside(self, name)
        self._require_room(name)
        draft = io.BytesIO()
        temporary = self._draft(name)
        try:
            yield draft
            self._write(temporary, draft.getvalue())
            self._turn("link")
            if temporary not in self.files:
                raise StorageError(f"{temporary}: gone before it had its final name")
            if name in self.files:
                raise FileExistsError(name)
        except Exception:
            self._change(temporary, None)
            raise
        self._appear(name, self.files[temporary])
        self._turn("clean")
        self._change(temporary, None)
        self._sync(name)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        try:
            with self.create(name, len(data)) as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        self._require_room(name)
        temporary = self._draft(name)
        self._write(temporary, data)
        self._turn("link")
        if temporary not in self.files:
            raise StorageError(f"{temporary}: gone before it had its final name")
        self._change(temporary, None)
        self._appear(name, data)
        self._sync(name)

    @contextmanager
    def open(self, name: str, size: int) -> Iterator[io.BufferedIOBase]:
        yield io.BytesIO(self._read(name, size))

    def map(self, name: str, size: int) -> np.ndarray:
        return np.frombuffer(self._read(name, size), np.uint8)

    def read(self, name: str) -> bytes:
        return self._read(name)

    def size(self, name: str) -> int | None:
        data = self.files.get(name)
        return None if data is None else len(data)

    def names(self, folder: str) -> list[str]:
        self._turn("read")
        return sorted(name for name in self.files if name.startswith(f"{folder}/"))

    def top(self) -> list[str]:
        heads = {name.partition("/")[::2] for name in self.files}
        return sorted({f"{head}/" if rest else head for head, rest in heads})

    def remove(self, name: str) -> None:
        self._turn("remove")
        self._change(name, None)

    def _read(self, name: str, size: int | None = None) -> bytes:
        if world().rng.random() < 0.3:  # replaying a log reads much; not every read is an occasion
            self._turn("read")
        data = self.files.get(name)
        if data is None:
            raise FileNotFoundError(2, "no such file", self.where(name))
        if size is not None and len(data) != size:
            raise wrong_size(self.where(name), size, len(data))
        return data

    def _draft(self, name: str) -> str:
        return f"{name}.{Uuid.uuid4().hex[:12]}.tmp"

    def _write(self, temporary: str, data: bytes) -> None:
        """Write a file under its temporary name, in two parts, and sync it."""
        here = world()
        self._change(temporary, data[: here.rng.randrange(len(data) + 1)])
        self._turn("write")
        if self.full:
            self._change(temporary, None)
            raise StorageError("disk: cannot write: no space left; make room")
        if temporary in self.files:  # else somebody cleaned up
            self._change(temporary, data)

    def _appear(self, name: str, data: bytes) -> None:
        self._change(name, data)
        for observe in self.observers:
            observe(name, data)

    def _sync(self, name: str) -> None:
        """Make all names of a folder durable, those of others too."""
        self._turn("sync")
        if world().rng.random() < self.failing:
            raise StorageError("disk: cannot sync folder: input/output error")
        folder = name.rpartition("/")[0]
        for other, data in self.pending:
            if other.rpartition("/")[0] == folder:
                self._persist(other, data)
        self.pending = [p for p in self.pending if p[0].rpartition("/")[0] != folder]

    def _change(self, name: str, data: bytes | None) -> None:
        """Change what everybody sees; a power cut may undo it."""
        if data is not None:
            self.files[name] = data
        elif self.files.pop(name, None) is None:
            return
        self.pending.append((name, data))

    def _persist(self, name: str, data: bytes | None) -> None:
        if data is None:
            self.durable.pop(name, None)
        else:
            self.durable[name] = data

    def _require_room(self, name: str) -> None:
        self._turn("space")
        if self.full:
            raise StorageError(f"{self.where(name)}: no space left; make room")

    def _turn(self, kind: str) -> None:
        here = world()
        here.sleep(here.rng.expovariate(1) * self.delay, f"disk {kind}")
