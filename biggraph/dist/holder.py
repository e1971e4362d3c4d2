"""What a coordinator remembers of a live lease beside the log.

Knows nothing of other leases.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from biggraph.dist.protocol import Holding
from biggraph.types import Bucket, PartitionKey


@dataclass
class Holder:
    """A live lease, as far as the coordinator remembers.

    Args:
        worker: its name.
        deadline: when it expires, unless renewed.
        known: whether it has said what it has since this coordinator began.
        holding: what it last said that it has.
        finished: buckets that the scheduler counts as trained, though they are not committed.
        evict: partitions that it was last asked to give back.
        edges: trained in its running bucket.
        validating: the epoch that it evaluates, or None.
    """

    worker: str
    deadline: float
    known: bool
    holding: Holding = field(default_factory=Holding)
    finished: tuple[Bucket, ...] = ()
    evict: frozenset[PartitionKey] = frozenset()
    edges: int = 0
    validating: int | None = None
