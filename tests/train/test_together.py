"""Joined tables and edges against their parts."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.table import EmbeddingTable
from biggraph.train.together import join_edges, join_tables
from biggraph.types import Bucket, Edges, PartitionKey

SCHEMA = GraphSchema(
    (EntityType("a", (3, 2, 4)), EntityType("b", (5,))),
    (RelationType("r", "a", "a"), RelationType("s", "b", "a"), RelationType("t", "a", "b")),
)


def make_tables(row_wise=False):
    generator = torch.Generator().manual_seed(1)
    tables = {}
    for key in SCHEMA.partition_keys():
        rows = torch.randn(SCHEMA.count(key), 2, generator=generator)
        state = torch.rand(len(rows), *([] if row_wise else [2]), generator=generator)
        tables[key] = EmbeddingTable(key, rows, state, "chain")
    return tables


def test_joined_tables_are_their_parts_in_order():
    for row_wise in (False, True):
        tables = make_tables(row_wise)
        before = {key: (t.rows.clone(), t.state.clone()) for key, t in tables.items()}
        joined, starts = join_tables(tables)
        assert {name: len(table.rows) for name, table in joined.items()} == {"a": 9, "b": 5}
        assert [starts[PartitionKey("a", i)] for i in range(3)] == [0, 3, 5]
        for key, (rows, state) in before.items():
            start = starts[key]
            whole = joined[key.entity_type]
            assert torch.equal(whole.rows[start : start + len(rows)], rows)
            assert torch.equal(whole.state[start : start + len(rows)], state)
            assert torch.equal(tables[key].rows, rows)


def test_training_the_joined_table_trains_its_parts():
    tables = make_tables()
    joined, starts = join_tables(tables)
    joined["a"].rows[starts[PartitionKey("a", 1)]] = 7
    assert tables[PartitionKey("a", 1)].rows[0].tolist() == [7, 7]
    tables[PartitionKey("b", 0)].state[2] = 9
    assert joined["b"].state[2].tolist() == [9, 9]


def test_joining_again_copies_nothing_unless_a_table_was_replaced():
    tables = make_tables()
    first, _ = join_tables(tables)
    again, _ = join_tables(tables)
    assert again["a"].rows.data_ptr() == first["a"].rows.data_ptr()
    tables[PartitionKey("a", 2)] = make_tables()[PartitionKey("a", 2)]
    third, _ = join_tables(tables)
    assert third["a"].rows.data_ptr() != first["a"].rows.data_ptr()
    assert torch.equal(third["a"].rows, first["a"].rows)


@given(seed=st.integers(0, 2**16), weighted=st.booleans())
@settings(max_examples=30, deadline=None)
def test_joined_edges_name_the_same_rows(seed, weighted):
    rng = np.random.default_rng(seed)
    _, starts = join_tables(make_tables())
    parts, expected = [], []
    for bucket in (Bucket(0, 0), Bucket(2, 1), Bucket(0, 2), Bucket(1, 0)):
        columns = []
        for rel, relation in enumerate(SCHEMA.relations):
            lhs, rhs = (
                PartitionKey(relation.lhs, bucket.lhs),
                PartitionKey(relation.rhs, bucket.rhs),
            )
            if lhs not in starts or rhs not in starts:
                continue
            edge = (int(rng.integers(SCHEMA.count(lhs))), rel, int(rng.integers(SCHEMA.count(rhs))))
            columns.append(edge)
            expected.append((starts[lhs] + edge[0], rel, starts[rhs] + edge[2]))
        lhs, rel, rhs = (np.array(column, dtype=np.int32) for column in zip(*columns, strict=True))
        weight = rng.random(len(lhs), dtype=np.float32) if weighted else None
        parts.append((bucket, Edges(lhs, rel, rhs, weight)))
    found = join_edges(SCHEMA, parts, starts)
    assert list(zip(found.lhs, found.rel, found.rhs, strict=True)) == expected
    assert (found.weight is not None) == weighted
