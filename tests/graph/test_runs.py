"""Names of generations on disk, and the dictionaries made of them, beside sorted lists."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.graph import dictionary
from biggraph.graph.dictionary import HashCollisionError, build_dictionary, entity_files, find
from biggraph.graph.hashing import Hashes, hash_names, texts_of
from biggraph.graph.plan import Plan
from biggraph.graph.runs import NameFiles, runs_of, write_run
from biggraph.graph.spec import ImportSpec

TYPES = [("r", "user", "item")]
entity = st.tuples(st.text(min_size=1, max_size=12), st.integers(0, 1))


def made(root, generations, partitions, memory=1):
    """Write a run of each generation; return the plan and the hashes of all entities."""
    spec = ImportSpec(relations=TYPES, entities={"user": partitions}, memory=memory)
    plan, known = Plan(spec, root, 5), {}
    (root / "scratch/names").mkdir(parents=True)
    for number, pairs in enumerate(generations):
        names = pa.array([text for text, _ in pairs], pa.large_string())
        types = np.array([kind for _, kind in pairs], np.int32)
        hashes = hash_names(texts_of(names), plan.salts[types])
        known |= dict(
            zip(pairs, zip(hashes.hi.tolist(), hashes.lo.tolist(), strict=True), strict=True)
        )
        write_run(plan, number, hashes, names, types)
    return plan, known


@settings(deadline=None, max_examples=40)
@given(
    generations=st.lists(st.lists(entity, unique=True, max_size=30), max_size=4),
    partitions=st.integers(1, 3),
)
def test_dictionaries_are_sorted_unions(generations, partitions, tmp_path_factory):
    plan, known = made(tmp_path_factory.mktemp("runs"), generations, partitions)
    runs = runs_of(plan)
    for run, pairs in zip(runs, generations, strict=True):
        assert sorted(run.column("number").tolist()) == list(range(len(pairs)))
        hashes = [known[pairs[k]] for k in run.column("number")]
        assert hashes == list(
            zip(*(lane.tolist() for lane in run.hashes(0, run.count)), strict=True)
        )
    for code, key in plan.all_keys():
        build_dictionary(plan, code, runs)
        files = entity_files(plan, code)
        mine = sorted(
            (hashes, text)
            for (text, kind), hashes in known.items()
            if plan.types[kind] == key.entity_type
            and hashes[0] % int(plan.partitions[kind]) == key.index
        )
        names = files.batch().column("name").to_pylist()
        assert files.count == len(mine)
        if not mine:
            continue
        found = zip(*(lane.tolist() for lane in files.hashes(0, files.count)), strict=True)
        assert list(zip(found, names, strict=True)) == mine


def test_little_memory_gives_the_same_dictionary(tmp_path):
    generations = [[(f"name {i}", 1) for i in range(k, 9000, 2 + k)] for k in range(3)]
    found = []
    for memory in (1, 1 << 30):
        plan, _ = made(tmp_path / str(memory), generations, 1, memory)
        build_dictionary(plan, 1, runs_of(plan))
        files = entity_files(plan, 1)
        found.append((files.batch().column("name").to_pylist(), files.column("hi").tolist()))
    assert found[0] == found[1]
    assert sorted(found[0][0]) == sorted({text for pairs in generations for text, _ in pairs})


@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("apart", [False, True])
def test_two_names_with_one_hash_are_noticed(tmp_path, apart, memory):
    """In one generation or in two."""
    plan, _ = made(tmp_path, [], 1, memory)
    texts = [["same", "other"]] if not apart else [["same"], ["other"]]
    for number, names in enumerate(texts):
        lanes = Hashes(*np.full((2, len(names)), 9, np.uint64))
        types = np.ones(len(names), np.int32)
        write_run(plan, number, lanes, pa.array(names, pa.large_string()), types)
    with pytest.raises(HashCollisionError):
        build_dictionary(plan, 1, runs_of(plan))


@settings(deadline=None)
@given(
    present=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12),
    wanted=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12),
    rows=st.integers(1, 5),
)
def test_find_gives_ranks_of_present_hashes(present, wanted, rows, tmp_path_factory):
    files = NameFiles(tmp_path_factory.mktemp("files"))
    present, wanted = sorted(present), sorted(wanted)
    lanes = [
        Hashes(*(np.array([pair[k] for pair in pairs], np.uint64) for k in (0, 1)))
        for pairs in (present, wanted)
    ]
    files.append(pa.array(["x"] * len(present), pa.large_string()), lanes[0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dictionary, "ROWS", rows)
        found = find(files, lanes[1]).tolist()
    assert found == [present.index(pair) if pair in present else -1 for pair in wanted]
