"""Edges of the bucket in training, and of the next one, read in the background.

Knows the graph; nothing of tables or schedules.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from biggraph.graph.graph import Graph
from biggraph.train.together import Starts, join_edges
from biggraph.types import Bucket, Edges


class EdgeReader:
    """Reads one split's edges bucket by bucket, at most one bucket ahead.

    Args:
        graph: to read from.
        split: name of the split.
    """

    def __init__(self, graph: Graph, split: str) -> None:
        self._graph = graph
        self._split = split
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edges")
        self._ahead: tuple[Bucket, Future[Edges]] | None = None

    def count(self, buckets: Iterable[Bucket]) -> int:
        """Return the number of edges in some buckets."""
        return sum(self._graph.splits[self._split].get(bucket, 0) for bucket in buckets)

    def prefetch(self, bucket: Bucket) -> None:
        """Start to read a bucket; an earlier one that was never read is dropped."""
        if self._ahead is None or self._ahead[0] != bucket:
            self._ahead = (bucket, self._pool.submit(self._graph.edges, self._split, bucket))

    def read(self, bucket: Bucket) -> Edges:
        """Return a bucket's edges.

        Raises:
            FormatError: the file is damaged.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == bucket:
            return ahead[1].result()
        return self._graph.edges(self._split, bucket)

    def read_joined(self, buckets: Iterable[Bucket], starts: Starts) -> Edges:
        """Return the edges of several buckets with offsets into joined tables.

        Raises:
            FormatError: a file is damaged.
        """
        parts = ((bucket, self.read(bucket)) for bucket in buckets)
        return join_edges(self._graph.schema, parts, starts)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)
