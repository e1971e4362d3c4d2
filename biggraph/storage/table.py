"""The table of one partition in memory: rows, optimizer state and the record of its training.

Tables are data: they are made, loaded, moved and saved here, and changed by the training step.
Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from biggraph.errors import DivergenceError
from biggraph.types import Bucket, PartitionKey

_BLOCK = 1 << 14  # rows rounded at a time


@dataclass(slots=True)
class EmbeddingTable:
    """One partition of one entity type.

    Args:
        key: which partition.
        rows: embeddings, float32 [count, D].
        state: Adagrad sums, float32 [count, D], or [count] where one float serves a row.
        chain: digest of the sequence of (epoch, bucket) that trained these rows, see
            `advance_chain`.
    """

    key: PartitionKey
    rows: Tensor
    state: Tensor
    chain: str

    @property
    def nbytes(self) -> int:
        """Bytes of rows and state."""
        return self.rows.nbytes + self.state.nbytes


def new_table(
    key: PartitionKey, shape: tuple[int, int], row_wise: bool, init_scale: float, seed: int
) -> EmbeddingTable:
    """Return the table of a partition that was never trained.

    Args:
        key: which partition.
        shape: (count, D).
        row_wise: one float of optimizer state a row instead of one a coordinate.
        init_scale: standard deviation of the rows, which are normal with mean 0.
        seed: of the generator; equal seeds give equal tables.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape, generator=generator, out=empty(shape)).mul_(init_scale)
    state = empty(shape[:1] if row_wise else shape).zero_()
    return EmbeddingTable(key, rows, state, new_chain(key))


def empty(shape: tuple[int, ...]) -> Tensor:
    """Return a float32 tensor of that shape for tables; its values are whatever memory held.

    A batch touches rows all over a table, and with pages of 4 KiB nearly each of them costs a walk
    through the page tables. NumPy asks the system for huge pages where there are some, torch does
    not unless the environment says so.
    """
    return torch.from_numpy(np.empty(shape, np.float32))


def new_chain(key: PartitionKey) -> str:
    """Return the chain of a partition that was never trained."""
    return hashlib.sha256(str(key).encode()).hexdigest()


def advance_chain(chain: str, epoch: int, bucket: Bucket) -> str:
    """Return the chain after one more bucket was trained.

    The log recomputes it, so a bucket that was trained twice, not at all, or in another order
    than the log says cannot go unnoticed.
    """
    text = f"{chain} {epoch} {bucket.lhs} {bucket.rhs}"
    return hashlib.sha256(text.encode()).hexdigest()


def halve(table: EmbeddingTable) -> Tensor:
    """Return the rows of a table as float16 [count, D], rounded up or down at random.

    The nearer of the two neighbours is the likelier, such that the mean is the value itself. So
    small steps of training are not lost each time a table is saved (Gupta et al., ICML 2015). What
    is drawn follows from the chain.

    Raises:
        DivergenceError: a value is beyond the range of float16; names the partition.
    """
    rows = table.rows
    largest = torch.finfo(torch.float16).max
    if rows.numel() and max(map(abs, map(float, rows.aminmax()))) > largest:
        raise DivergenceError(
            f"partition {table.key}: an embedding is beyond {largest:g}, the largest float16; the "
            'last commit is intact: begin the run anew with checkpoint.rows = "float32", or a '
            "lower optimizer.lr"
        )
    generator = torch.Generator().manual_seed(int(table.chain[:15], 16))
    halves = torch.empty(rows.shape, dtype=torch.float16)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        exponent = torch.frexp(part).exponent
        # Between two float16s there.
        spacing = torch.ldexp(torch.ones_like(part), (exponent - 11).clamp_(min=-24))
        steps = (part / spacing).add_(torch.rand(part.shape, generator=generator)).floor_()
        halves[start : start + _BLOCK] = steps.mul_(spacing).clamp_(-largest, largest)
    return halves


def check_finite(table: EmbeddingTable) -> None:
    """Refuse a table that training has ruined.

    Raises:
        DivergenceError: a row or its state holds NaN or infinity; names the partition.
    """
    for name, values in (("embeddings", table.rows), ("optimizer state", table.state)):
        if values.numel() and not all(math.isfinite(edge) for edge in values.aminmax()):
            raise DivergenceError(
                f"partition {table.key}: {name} not finite; the last commit is intact: "
                "lower optimizer.lr or raise regularizer.n3, then resume"
            )
