import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biggraph.errors import ConfigError, InputError
from biggraph.graph import hashing, importer, mapping, writing
from biggraph.graph.graph import Graph
from biggraph.graph.importer import import_graph
from biggraph.graph.runs import write_run
from biggraph.graph.spec import ImportSpec
from biggraph.types import Bucket, PartitionKey

SMALL = 1 << 16  # a budget that makes every stage cut its work into ranges

name = st.text(
    st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=6
)
rows = st.lists(st.tuples(name, st.sampled_from("abc"), name), min_size=1, max_size=30)


def random_rows(count, entities=50, relations=5, seed=0):
    generator = random.Random(seed)
    return [
        (
            f"e{generator.randrange(entities)}",
            f"r{generator.randrange(relations)}",
            f"e{generator.randrange(entities)}",
        )
        for _ in range(count)
    ]


def plain(rows):
    return Counter((h, r, t, 1.0) for h, r, t in rows)


def write(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), newline="")
    return path


@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(train=rows, test=rows, partitions=st.integers(1, 4), shuffle=st.randoms())
def test_round_trip_whatever_the_order(train, test, partitions, shuffle, tmp_path_factory, triples):
    """What is read back is what a Counter holds; permuted lines and files give the same bytes."""
    folder = tmp_path_factory.mktemp("round-trip")
    prints = []
    for attempt in range(2):
        parts = [train[::2], train[1::2]] if attempt else [train]
        for part in parts:
            shuffle.shuffle(part)
        files = [write(folder / f"{attempt}-{i}.tsv", p) for i, p in enumerate(parts) if p]
        held = write(folder / f"test-{attempt}.tsv", test)
        out = folder / f"graph-{attempt}"
        import_graph(files, out, spec=ImportSpec(test=[held], partitions=partitions))
        graph = Graph.open(out)
        assert graph.verify() == []
        assert triples(graph) == plain(train)
        assert triples(graph, "test") == plain(test)
        check_dictionary(graph, train, test)
        prints.append(graph.fingerprint)
    assert prints[0] == prints[1]


def check_dictionary(graph, train, test):
    """Names, relations and degrees equal those of a naive dictionary."""
    names = {end for h, _, t in train + test for end in (h, t)}
    degrees = Counter(end for h, _, t in train for end in {h, t})
    found = {}
    for key in graph.schema.partition_keys():
        texts = graph.names(key).to_pylist()
        found |= dict(zip(texts, graph.degrees(key).tolist(), strict=True))
        partition, offset = graph.locate(key.entity_type, texts)
        assert (partition == key.index).all()
        assert offset.tolist() == list(range(len(texts)))
    assert found == {text: degrees[text] for text in names}
    relations = [relation.name for relation in graph.schema.relations]
    assert relations == sorted({r for _, r, _ in train + test})
    counts = Counter(r for _, r, _ in train)
    assert graph.relation_counts == tuple(counts[r] for r in relations)


def test_little_memory_gives_the_same_bytes(source, build, digests, any_memory):
    lines = random_rows(20_000, entities=3000) + [("hub", "r0", "e1")] * 500
    path = source(lines)
    options = {"partitions": 2, "holdout": {"valid": 0.1}, "min_entity_count": 2}
    expected = digests(build([path], **options))
    assert digests(build([path], memory=SMALL, **options)) == expected


def test_offsets_of_64_bits(source, build, triples, monkeypatch):
    """As in a graph with more entities in a partition than 32 bits can say."""
    for module in (importer, writing):
        monkeypatch.setattr(module, "offset_dtype", lambda _: np.dtype(np.int64))
    lines, weights = random_rows(300), [0.5, 3.0]
    path = source([(*row, weights[i % 2]) for i, row in enumerate(lines)])
    graph = build([path], partitions=2, min_entity_count=2, holdout={"test": 0.1})
    assert graph.edges("train", Bucket(0, 1)).lhs.dtype == np.int64
    found = triples(graph) + triples(graph, "test")
    assert found == Counter((*row, weights[i % 2]) for i, row in enumerate(lines))


def test_seed_changes_assignment_and_shuffle(source, build, digests, triples):
    path = source(random_rows(500))
    one, two, again = (build([path], partitions=2, seed=seed) for seed in (1, 2, 1))
    assert digests(one) == digests(again)
    assert digests(one) != digests(two)
    assert triples(one) == triples(two)


def test_edges_are_shuffled_and_equal_edges_spread(source, build):
    path = source([("a", "r", f"e{i:04}") for i in range(1000)] + [("a", "r", "x")] * 1000)
    graph = build([path])
    edges = graph.edges("train", Bucket(0, 0))
    names = graph.names(PartitionKey("entity", 0))
    equal = np.array([names[int(i)].as_py() == "x" for i in edges.rhs])
    assert 400 < equal[:1000].sum() < 600
    assert (equal[1:] & equal[:-1]).sum() < 700  # 1000 where equal edges lie side by side


def test_partitions_are_balanced_and_any_number_works(source, build):
    path = source(random_rows(4000, entities=1000))
    for partitions in (1, 7, 16):
        graph = build([path], partitions=partitions)
        counts = graph.schema.entity_type("entity").counts
        assert len(counts) == partitions
        assert max(counts) - min(counts) < 6 * (1000 / partitions) ** 0.5 + 6
        assert sum(graph.splits["train"].values()) == 4000


def test_more_partitions_than_entities(source, build, triples):
    graph = build([source([("a", "r", "b")])], partitions=50)
    assert triples(graph) == plain([("a", "r", "b")])
    empty = graph.edges("train", Bucket(49, 49))
    assert len(empty) == 0
    assert len(list(graph.path.rglob("*.h5"))) == 1


TYPED = [("likes", "person", "drink"), ("knows", "person", "person"), ("never", "drink", "drink")]


def test_entity_types_come_from_the_relations(source, build, triples):
    lines = [("ann", "likes", "tea"), ("tea", "knows", "ann"), ("bob", "likes", "ann")]
    graph = build([source(lines)], relations=TYPED, entities={"person": 2, "drink": 3})
    assert triples(graph) == plain(lines)
    assert [e.name for e in graph.schema.entities] == ["person", "drink"]
    assert [e.partitions for e in graph.schema.entities] == [2, 3]
    assert [r.name for r in graph.schema.relations] == ["likes", "knows", "never"]
    assert graph.relation_counts == (2, 1, 0)
    assert sorted(key.entity_type for key, _ in graph.find("tea")) == ["drink", "person"]
    for key, offset in graph.find("ann"):
        assert graph.names(key)[offset].as_py() == "ann"


def test_one_name_in_two_types_is_never_taken_for_seen(tmp_path):
    """Among so many names, some land with both their types in one place of the memory of names."""
    names = pa.array(range(60_000))
    table = pa.table({"head": names, "relation": ["buys"] * 60_000, "tail": names})
    report = import_graph(
        table,
        tmp_path / "g",
        spec=ImportSpec(relations=[("buys", "user", "item")], memory=1 << 24),
    )
    assert report.entities == {"user": 60_000, "item": 60_000}


def test_sources_without_edges_are_fine_between_types(source, build, triples):
    """Also as the first ones, when no relation is known yet."""
    empty = source("head\trelation\ttail\n", "0.tsv")
    bad = source("a\tr\t\n", "1.tsv")
    full = source([("a", "r", "b")], "2.tsv")
    graph = build([empty, bad, full], relations=[("r", "x", "y")], skip_bad_lines=True)
    assert triples(graph) == plain([("a", "r", "b")])


def test_a_table_of_names_has_a_largest_size(source, build, digests, monkeypatch, any_memory):
    """Whatever the budget: places in it are told in 32 bits."""
    path = source(random_rows(9000, entities=3000))
    expected = digests(build([path]))
    monkeypatch.setattr(mapping.numbering, "MOST", 1)
    runs = []
    monkeypatch.setattr(mapping, "write_run", lambda *run: runs.append(write_run(*run)))
    assert digests(build([path], memory=SMALL)) == expected
    assert len(runs) > 1


def test_degree_counts_a_self_loop_once_per_edge(source, build):
    graph = build([source([("a", "r", "a"), ("a", "r", "b")])])
    (key, offset), *_ = graph.find("a")
    assert graph.degrees(key)[offset] == 2
    typed = build([source([("a", "r", "a")])], relations=[("r", "x", "y")])
    assert [typed.degrees(key)[offset] for key, offset in typed.find("a")] == [1, 1]


def test_awkward_names_survive(source, build, triples):
    names = ["a b", " lead", "trail ", '"q"', "'", "é", "e\u0301", "x" * 100_000, "NaN", "0", "#"]
    lines = [(one, "r s", two) for one in names for two in reversed(names)]
    graph = build([source(lines)], partitions=3)
    assert triples(graph) == plain(lines)


def test_relation_and_entity_only_in_test_exist(source, build):
    test = source([("a", "new", "z")], "test.tsv")
    graph = build([source([("a", "r", "b")])], test=[test])
    assert [r.name for r in graph.schema.relations] == ["new", "r"]
    assert graph.relation_counts == (0, 1)
    (key, offset), *_ = graph.find("z")
    assert graph.degrees(key)[offset] == 0


def test_weights_are_real_numbers(source, build, triples):
    path = source("a\tr\tb\t0.25\na\tr\tb\t3\nb\tr\ta\t1e-3\n")
    graph = build([path])
    assert graph.weighted
    small = float(np.float32(1e-3))
    expected = {("a", "r", "b", 0.25): 1, ("a", "r", "b", 3.0): 1, ("b", "r", "a", small): 1}
    assert triples(graph) == expected


def naive_filter(rows, min_entity, min_relation):
    relations = Counter(r for _, r, _ in rows)
    rows = [row for row in rows if relations[row[1]] >= min_relation]
    entities = Counter(end for h, _, t in rows for end in {h, t})
    return [row for row in rows if min(entities[row[0]], entities[row[2]]) >= min_entity], {
        e for e, count in entities.items() if count >= min_entity
    }


@pytest.mark.parametrize("partitions", [1, 40])
@pytest.mark.parametrize(("min_entity", "min_relation"), [(3, 1), (1, 12), (4, 12)])
def test_minimum_counts(source, build, triples, min_entity, min_relation, partitions):
    lines = random_rows(60, entities=30, relations=6)
    graph = build(
        [source(lines)],
        min_entity_count=min_entity,
        min_relation_count=min_relation,
        partitions=partitions,
    )
    kept, entities = naive_filter(lines, min_entity, min_relation)
    assert triples(graph) == plain(kept)
    names = [n for key in graph.schema.partition_keys() for n in graph.names(key).to_pylist()]
    assert sorted(names) == sorted(entities)
    report = build.reports[-1]
    assert report.dropped_edges == len(lines) - len(kept)
    assert report.dropped_entities + len(entities) == len({e for h, _, t in lines for e in (h, t)})


def test_minimum_counts_that_drop_all_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="min_entity_count"):
        import_graph(
            [source([("a", "r", "b")])], tmp_path / "g", spec=ImportSpec(min_entity_count=9)
        )
    assert not (tmp_path / "g").exists()


def naive_return(train, held):
    """Return the split in which every entity and relation of a held-out edge is in train."""
    ends = {(side, e) for h, _, t in train for side, e in (("e", h), ("e", t))}
    relations = {r for _, r, _ in train}
    return [
        row
        for row in held
        if ("e", row[0]) in ends and ("e", row[2]) in ends and row[1] in relations
    ]


@pytest.mark.parametrize("partitions", [1, 3])
def test_holdout_keeps_everything_in_train(source, build, triples, partitions):
    lines = random_rows(3000, entities=900, relations=40)
    lines += [(f"once{i}", "r1", "e1") for i in range(50)] + lines[:100]
    graph = build([source(lines)], partitions=partitions, holdout={"valid": 0.1, "test": 0.2})
    splits = {split: triples(graph, split) for split in ("train", "valid", "test")}
    assert sum(splits.values(), Counter()) == plain(lines)
    assert not set(splits["train"]) & (set(splits["valid"]) | set(splits["test"]))
    assert not set(splits["valid"]) & set(splits["test"])
    trained = {end for h, _, t, _ in splits["train"] for end in (h, t)}
    assert trained == {end for h, _, t in lines for end in (h, t)}
    assert {r for _, r, _, _ in splits["train"]} == {r for _, r, _ in lines}
    assert 0.05 < sum(splits["valid"].values()) / len(lines) < 0.12
    assert 0.1 < sum(splits["test"].values()) / len(lines) < 0.22
    assert build.reports[-1].edges == {k: sum(v.values()) for k, v in splits.items()}


def test_holdout_is_the_same_for_any_partitions_and_order(source, build, triples):
    lines = random_rows(2000, entities=200)
    one = build([source(lines)], holdout={"test": 0.1})
    two = build([source(lines[::-1], "b.tsv")], holdout={"test": 0.1}, partitions=4)
    assert triples(one, "test") == triples(two, "test")
    assert triples(one, "test") != triples(
        build([source(lines)], holdout={"test": 0.1}, seed=5), "test"
    )


def test_tables_and_frames(build, triples):
    lines = random_rows(50)
    frame = pd.DataFrame(lines, columns=["head", "relation", "tail"])
    table = pa.Table.from_pandas(frame)
    test = pa.table({"tail": [1, 2], "head": [3, 4], "relation": ["r0", "r1"]})
    for graph in (build(frame, test=test), build(table, test=test)):
        assert triples(graph) == plain(lines)
        assert triples(graph, "test") == plain([("3", "r0", "1"), ("4", "r1", "2")])


def test_a_split_may_be_none_or_one_path(source, build, triples):
    path, held = source(random_rows(20)), source(random_rows(5, seed=1), "held.tsv")
    graph = build([path], valid=None, test=held)
    assert "valid" not in graph.splits
    assert triples(graph, "test") == plain(random_rows(5, seed=1))


@pytest.mark.parametrize("relations", [[], [("r0", "a", "b"), ("r1", "b", "c")]])
def test_dropping_all_relations_is_refused(source, tmp_path, relations):
    path = source([("a", "r0", "b"), ("b", "r1", "c")])
    with pytest.raises(InputError, match="no relations left: none has 9 edges; lower min_relation"):
        import_graph(
            [path], tmp_path / "g", spec=ImportSpec(relations=relations, min_relation_count=9)
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pd.DataFrame({"head": ["a", 1], "relation": ["r", "r"], "tail": ["b", "c"]}),
            'table: column "head" mixes types',
        ),
        (
            pa.table({"head": ["a", "b"], "relation": ["r", "r"], "tail": [b"b", b"\xff"]}),
            "table:2: tail is not valid UTF-8",
        ),
        (
            pa.table(
                {
                    "head": pa.array([b"a", b"\xff"]).view(pa.string()),
                    "relation": ["r", "r"],
                    "tail": ["b", "c"],
                }
            ),
            "table:2: head is not valid UTF-8",
        ),
    ],
)
def test_tables_that_hold_no_names_are_refused(table, message, tmp_path):
    with pytest.raises(InputError, match=message):
        import_graph(table, tmp_path / "g", spec=ImportSpec())


def test_colliding_hashes_are_reseeded(source, build, triples, monkeypatch):
    """With a hash that cannot tell names apart, the import notices and takes another seed."""
    strong, salts = hashing.hash_names, []

    def weak(names, salt):
        hashes = strong(names, salt)
        salts.append(int(salt[0]))
        if salts[0] == int(salt[0]):
            hashes.hi[:] &= np.uint64(3)
            hashes.lo[:] = 0
        return hashes

    lines = random_rows(200)
    expected = triples(build([source(lines)]))
    monkeypatch.setattr(mapping, "hash_names", weak)
    graph = build([source(lines)], partitions=2)
    assert triples(graph) == expected == plain(lines)
    assert graph._manifest.hash_seed != graph._manifest.seed
    assert len(set(salts)) == 2


def test_progress_is_told(source, build):
    told = defaultdict(list)
    path = source(random_rows(100))
    build([path], on_progress=lambda stage, done, total: told[stage].append((done, total)))
    assert set(told) == {"read", "entities", "edges", "write train"}
    for steps in told.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_report(source, build):
    build([source(random_rows(100))], valid=[source(random_rows(9, seed=3), "v.tsv")])
    report = build.reports[-1]
    assert report.rows == {"train": 100, "valid": 9}
    assert report.relations == 5
    assert report.rows_per_s > 0
    assert sum(report.buckets["train"].values()) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": {"dev": 0.1}}, "holdout.dev: unknown split"),
        ({"holdout": {"test": 1.5}}, "holdout.test = 1.5: must be between 0 and 1"),
        ({"holdout": {"valid": 0.5, "test": 0.5}}, "leaving no train edges"),
        ({"holdout": {"test": 0.1}, "test": ["x"]}, "files for test are given too"),
        ({"partitions": 0}, "partitions = 0: must be from 1"),
        ({"entities": {"entity": 0}}, "entities.entity.partitions = 0"),
        ({"entities": {"usr": 2}}, "entities.usr: no relation has entities"),
        ({"columns": ["a"]}, "columns = a: expected head,relation,tail"),
        ({"relations": [("r", "a", "b"), ("r", "a", "b")]}, '"r" is defined twice'),
        ({"seed": -1}, "seed = -1"),
        ({"memory": (16 << 20) - 1}, "memory = 16777215: must be at least 16 MiB"),
        ({"columns": ["-", "a", "b"]}, 'columns = -,a,b: "-" stands for no relation, the second'),
        ({"columns": ["a", "-", "-"]}, 'columns = a,-,-: "-" stands for no relation, the second'),
        ({"columns": ["a", "-"]}, 'columns = a,-: "-" leaves no tail'),
        ({"holdout": {"valid": 0.1}, "valid": Path("x")}, "files for valid are given too"),
        ({"holdout": {"test": 0.1}, "test": pa.table({"a": []})}, "files for test are given too"),
    ],
)
def test_impossible_options_are_refused(source, tmp_path, options, message):
    with pytest.raises(ConfigError, match="(?s)" + message.replace("[", r"\[")):
        import_graph([source([("a", "r", "b")])], tmp_path / "g", spec=ImportSpec(**options))
    assert not (tmp_path / "g").exists()


def test_a_real_graph_keeps_its_published_counts(datasets, build):
    folder = datasets("fb15k-237")
    files = {split: [folder / f"{split}.tsv.zst"] for split in ("train", "valid", "test")}
    graph = build(files["train"], valid=files["valid"], test=files["test"], partitions=3)
    counts = {split: sum(buckets.values()) for split, buckets in graph.splits.items()}
    assert counts == {"train": 272115, "valid": 17535, "test": 20466}
    assert graph.schema.entity_type("entity").count == 14541
    assert len(graph.schema.relations) == 237
