"""Small in-memory stand-ins for Graph and Checkpoint, and a naive way to rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from biggraph.config import make_config
from biggraph.errors import did_you_mean
from biggraph.model.model import build_model
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.types import Bucket, Edges, PartitionKey, Side


class MemoryGraph:
    """A graph given as {split: [(lhs name, relation name, rhs name)]} with "TYPE" tables.

    `entities`: type -> list of names; `partitions`: type -> number; entity i of a type lies in
    partition i % partitions, in order.
    """

    def __init__(self, entities, relations, splits, partitions=None):
        partitions = partitions or {}
        self.path = Path("memory-graph")
        self.fingerprint = "f" * 64
        self.parts = {
            kind: [names[p :: partitions.get(kind, 1)] for p in range(partitions.get(kind, 1))]
            for kind, names in entities.items()
        }
        self.schema = GraphSchema(
            tuple(EntityType(k, tuple(map(len, parts))) for k, parts in self.parts.items()),
            tuple(RelationType(*relation) for relation in relations),
        )
        self.place = {
            kind: {n: (p, o) for p, names in enumerate(parts) for o, n in enumerate(names)}
            for kind, parts in self.parts.items()
        }
        self.buckets = {name: self._bucketize(edges) for name, edges in splits.items()}
        self.splits = {
            split: {bucket: len(edges) for bucket, edges in buckets.items()}
            for split, buckets in self.buckets.items()
        }

    def _bucketize(self, triples):
        buckets = {}
        for lhs, name, rhs in triples:
            rel = self.schema.relation_id(name)
            relation = self.schema.relations[rel]
            (p, a), (q, b) = self.place[relation.lhs][lhs], self.place[relation.rhs][rhs]
            buckets.setdefault(Bucket(p, q), []).append((a, rel, b))
        return buckets

    def edges(self, split, bucket):
        rows = self.buckets[split].get(bucket, [])
        columns = np.array(rows, dtype=np.int32).reshape(-1, 3).T
        return Edges(columns[0], columns[1], columns[2])

    def names(self, key):
        return pa.array(self.parts[key.entity_type][key.index], pa.large_string())

    def locate(self, entity_type, names):
        found = [self.place[entity_type].get(name, (-1, -1)) for name in names]
        return (
            np.array([p for p, _ in found], dtype=np.int32),
            np.array([o for _, o in found], dtype=np.int64),
        )

    def find(self, name):
        return [
            (PartitionKey(kind, place[name][0]), place[name][1])
            for kind, place in self.place.items()
            if name in place
        ]

    def suggest(self, entity_type, name):
        hint = did_you_mean(name, list(self.place[entity_type or next(iter(self.place))]))
        return [hint.split('"')[1]] if '"' in hint else []


class MemoryCheckpoint:
    """Embeddings given by entity name, so that every partitioning holds the same rows."""

    def __init__(self, graph, rows, parameters, **model):
        self.config = make_config({"model": model})
        self.graph, self.by_name, self.parameters = graph, rows, parameters
        self.path, self.name, self.epoch = Path("memory-run"), "latest", 3
        self.model = build_model(self.config.model, [], graph.schema)
        self.model.load(parameters)
        self.calls = []

    def shape(self, key):
        return self.graph.schema.count(key), self.config.model.dimension

    def rows(self, key, offsets):
        names = self.graph.parts[key.entity_type][key.index]
        table = np.array([self.by_name[key.entity_type][n] for n in names], dtype=np.float32)
        out = table.reshape(len(names), -1)[offsets].copy()
        self.calls.append((key, len(out)))
        return out

    def relations(self):
        return self.parameters


def random_checkpoint(graph, seed=0, **model):
    """Return a checkpoint with random rows and random relation parameters."""
    generator = np.random.default_rng(seed)
    model = {"dimension": 8} | model
    rows = {
        kind: {
            name: generator.normal(size=model["dimension"]).astype(np.float32)
            for name in sorted(place)
        }
        for kind, place in graph.place.items()
    }
    config = make_config({"model": model})
    parameters = build_model(config.model, [], graph.schema).parameters.values
    arrays = {
        name: generator.normal(size=value.shape).astype(np.float32)
        for name, value in parameters.items()
    }
    return MemoryCheckpoint(graph, rows, arrays, **model)


def naive_score(checkpoint, graph, triple, side):
    """Score one edge in float64 with `side` replaced."""
    model = checkpoint.model
    lhs, name, rhs = triple
    rel = graph.schema.relation_id(name)
    relation = graph.schema.relations[rel]
    group = next(g for g in model.groups if rel in g.relations)
    ends = {
        Side.LHS: torch.from_numpy(checkpoint.by_name[relation.lhs][lhs])[None],
        Side.RHS: torch.from_numpy(checkpoint.by_name[relation.rhs][rhs])[None],
    }
    query = model.query(group, side, ends[side.other], torch.tensor([rel]))
    candidate = model.candidates(group, side, ends[side])
    return float(model.matched(query.double(), candidate.double())[0])


def naive_ranks(graph, triples, known, score, candidates=None):
    """Rank every triple by loops: {(triple, side): (higher, tied)}.

    `score(triple, side)`; `known`: set of triples that do not compete, or empty for raw ranks.
    """
    ranks = {}
    for triple in triples:
        relation = graph.schema.relations[graph.schema.relation_id(triple[1])]
        for side in Side:
            kind = relation.entity_type(side)
            truth = score(triple, side)
            higher = tied = 0
            for name in candidates[kind] if candidates else graph.place[kind]:
                other = (name, *triple[1:]) if side is Side.LHS else (*triple[:2], name)
                if other == triple or other in known:
                    continue
                value = score(other, side)
                close = abs(value - truth) <= 1e-6 * (1 + abs(truth))
                if np.isnan(truth) or (value > truth and not close):
                    higher += 1
                elif close:
                    tied += 1
            ranks[triple, side] = (higher, tied)
    return ranks
