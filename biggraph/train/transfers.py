"""Copies between main memory and a device, and which tables have a copy there.

Knows tensors; nothing of buckets, steps or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from biggraph.model.relations import RelationParameters

# Bytes of each of the two buffers: long enough that starting a copy costs nothing beside it.
_BUFFER = 32 * 2**20

Fence = Callable[[], None]  # waits for everything that was begun before it was made


def _fence_on_gpu(gpu: torch.device) -> Fence:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(gpu))
    return event.synchronize


def _no_fence(where: torch.device) -> Fence:
    return lambda: None


# By kind of device: whether buffers are pinned, and how to wait for copies.
_KINDS: dict[str, tuple[bool, Callable[[torch.device], Fence]]] = {
    "cpu": (False, _no_fence),
    "cuda": (True, _fence_on_gpu),
}


class Ferry:
    """Copies tensors to a device and back, piece by piece through two pinned buffers in turn.

    While one buffer travels, the processor fills or empties the other: pageable memory, in which
    tables are, can only be copied while everybody waits. What is brought may be used at once by
    work that is begun afterwards; what is fetched is there when `fetch` returns.

    Args:
        where: the device.
        buffer: bytes of each of the two buffers.
    """

    def __init__(self, where: torch.device, *, buffer: int = _BUFFER) -> None:
        self.where, self._size = where, buffer
        self._pinned, self._fence = _KINDS[where.type]
        self._buffers: list[Tensor] = []
        self._fences = [_no_fence(where)] * 2
        self._turn = 0

    def bring(self, host: Tensor) -> Tensor:
        """Return a copy on the device."""
        here = torch.empty_like(host, device=self.where, memory_format=torch.contiguous_format)
        self.send(host, here)
        return here

    def send(self, host: Tensor, here: Tensor) -> None:
        """Copy a tensor from main memory into one of the same shape on the device."""
        flat = here.view(-1)
        for start, piece in self._pieces(host):
            turn, buffer = self._next(piece)
            buffer.copy_(piece)
            flat[start : start + len(piece)].copy_(buffer, non_blocking=True)
            self._fences[turn] = self._fence(self.where)

    def fetch(self, here: Tensor, host: Tensor) -> None:
        """Copy a tensor from the device into one of the same shape in main memory."""
        flat, behind = here.reshape(-1), list[tuple[Tensor, Tensor, Fence]]()
        for start, piece in self._pieces(host):
            turn, buffer = self._next(piece)
            buffer.copy_(flat[start : start + len(piece)], non_blocking=True)
            self._fences[turn] = self._fence(self.where)
            _empty(behind)
            behind.append((piece, buffer, self._fences[turn]))
        _empty(behind)

    def _pieces(self, host: Tensor) -> Iterator[tuple[int, Tensor]]:
        step = self._size // host.element_size()
        flat = host.view(-1)
        for start in range(0, len(flat), step):
            yield start, flat[start : start + step]

    def _next(self, piece: Tensor) -> tuple[int, Tensor]:
        """Return the buffer whose turn it is, once it is free, in the type and size of a piece."""
        if not self._buffers:
            self._buffers = [
                torch.empty(self._size, dtype=torch.uint8, pin_memory=self._pinned)
                for _ in range(2)
            ]
        self._turn = 1 - self._turn
        self._fences[self._turn]()
        return self._turn, self._buffers[self._turn][: piece.nbytes].view(piece.dtype)


def _empty(behind: list[tuple[Tensor, Tensor, Fence]]) -> None:
    for piece, buffer, wait in behind:
        wait()
        piece.copy_(buffer)
    behind.clear()


class Residence:
    """Tensors of main memory that have a copy on a device, which training changes.

    The next ones to be brought that are there already need not travel. A tensor that has left main
    memory, or was changed there since, is forgotten.

    Args:
        ferry: to the device.
    """

    def __init__(self, ferry: Ferry) -> None:
        self._ferry = ferry
        # Copy and version by tensor in main memory.
        self._here: MutableMapping[Tensor, tuple[Tensor, int]] = WeakTensorKeyDictionary()
        self._saved = True

    def bring(self, hosts: Iterable[Tensor]) -> list[Tensor]:
        """Return copies of these tensors; all others leave the device first.

        What was not saved by then is given up: its bucket was.
        """
        wanted = list(hosts)
        ids = {id(host) for host in wanted}
        for host, (_, version) in list(self._here.items()):
            if not self._saved or id(host) not in ids or host._version != version:
                del self._here[host]
        self._saved = False
        for host in wanted:
            if host not in self._here:
                self._here[host] = self._ferry.bring(host), host._version
        return [self._here[host][0] for host in wanted]

    def save(self) -> None:
        """Copy all back to main memory; the copies stay."""
        for host, (here, _) in list(self._here.items()):
            self._ferry.fetch(here, host)
            self._here[host] = here, host._version
        self._saved = True


class Loan:
    """Relation parameters on a device while a bucket is trained there.

    Others may change them in main memory meanwhile, in exchange with other workers: what training
    came to is added to them, it does not replace them.

    Args:
        owner: the parameters in main memory.
        ferry: to the device.
    """

    def __init__(self, owner: RelationParameters, ferry: Ferry) -> None:
        self._owner, self._ferry = owner, ferry
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # in main memory, here, as brought

    def bring(self) -> RelationParameters:
        """Return a copy on the device."""
        self._pairs = []
        with self._owner.lock:
            values = {name: self._bring(host) for name, host in self._owner.values.items()}
            sums = {name: self._bring(host) for name, host in self._owner.sums.items()}
        return RelationParameters(values, sums)

    def find(self, host: Tensor) -> Tensor | None:
        """Return the copy of a tensor if it is one of the parameters."""
        return next((here for owner, here, _ in self._pairs if owner is host), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(here.nbytes for _, here, _ in self._pairs)

    def exchange(self) -> None:
        """Give back, and take over in the same copies what others have changed."""
        self.give_back()
        with self._owner.lock:
            for host, here, before in self._pairs:
                self._ferry.send(host, here)
                before.copy_(here)

    def give_back(self) -> None:
        """Add what the copies have changed by to the parameters in main memory."""
        changes = [torch.empty_like(host) for host, _, _ in self._pairs]
        for change, (_, here, before) in zip(changes, self._pairs, strict=True):
            self._ferry.fetch(here - before, change)
        with self._owner.lock:
            for change, (host, _, _) in zip(changes, self._pairs, strict=True):
                host.add_(change)

    def _bring(self, host: Tensor) -> Tensor:
        here = self._ferry.bring(host)
        self._pairs.append((host, here, here.clone()))
        return here
