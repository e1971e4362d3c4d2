"""The store of one worker: which versions it reads, and under which lease it writes."""

import pytest
import torch

from biggraph.errors import FormatError
from biggraph.storage.folder import Folder
from biggraph.storage.store import DiskStore, initial_table
from biggraph.storage.table import advance_chain
from biggraph.types import Bucket
from tests.storage.doubles import SCHEMA, facts

USER_0, USER_1, ITEM = SCHEMA.partition_keys()


@pytest.fixture
def store(tmp_path):
    return DiskStore(Folder(tmp_path), facts(), {}, 1)


def save(store, key, value):
    """Save a table full of a number as the next version."""
    table = store.load(key)
    table.rows[:] = value
    table.chain = advance_chain(table.chain, 1, Bucket(0, 0))
    return store.save(table)


def value_of(store, key):
    rows = store.load(key).rows
    chain, viewed = store.view(key)
    assert torch.equal(rows, viewed)
    assert chain == store.load(key).chain
    assert bool((rows == rows[0, 0]).all())
    return float(rows[0, 0])


def test_a_new_lease_forgets_what_was_not_committed(store):
    committed = save(store, USER_0, 1)
    lost = save(store, USER_0, 2)
    save(store, USER_1, 3)
    store.begin({USER_0: committed}, 7)
    assert value_of(store, USER_0) == 1
    assert torch.equal(store.load(USER_1).rows, initial_table(facts(), USER_1).rows)
    again = save(store, USER_0, 4)
    assert (again.version, lost.version) == (2, 2)
    assert again.file.path == lost.file.path.replace("f000001", "f000007")
    assert (store.place.root / lost.file.path).exists()
    assert value_of(store, USER_0) == 4
    assert save(store, USER_1, 5).file.path.endswith("v000001-f000007.h5")


def test_versions_of_others_are_read_and_followed(tmp_path, store):
    own = save(store, USER_1, 1)
    other = DiskStore(Folder(tmp_path), facts(), {USER_1: own}, 2)
    heads = {USER_0: save(other, USER_0, 2), USER_1: save(other, USER_1, 3)}
    assert value_of(store, USER_1) == 1
    store.follow(heads)
    assert (value_of(store, USER_0), value_of(store, USER_1)) == (2, 3)
    assert store.fence == 1
    following = save(store, USER_1, 4)
    assert (following.version, following.file.path[-18:]) == (3, "v000003-f000001.h5")
    store.follow({})
    assert value_of(store, USER_1) == 4


def test_the_store_keeps_its_own_record_of_versions(store):
    heads = {USER_0: save(store, USER_0, 1)}
    store.begin(heads, 2)
    save(store, USER_0, 2)
    assert heads[USER_0].version == 1


def test_a_version_that_is_gone_is_named(tmp_path, store):
    saved = save(store, ITEM, 1)
    store.discard(saved)
    for read in (store.load, store.view):
        with pytest.raises(FormatError, match=f"{tmp_path / saved.file.path}: missing"):
            read(ITEM)


def test_rows_may_be_halves_in_files_and_are_floats_in_memory(tmp_path):
    store = DiskStore(Folder(tmp_path), facts(half=True), {}, 1)
    table = store.load(USER_0)
    before = table.rows.clone()
    saved = store.save(table)
    assert torch.equal(table.rows, before)  # what goes on being trained loses nothing
    loaded, (_, viewed) = store.load(USER_0), store.view(USER_0)
    assert (loaded.rows.dtype, loaded.state.dtype) == (torch.float32, torch.float32)
    assert viewed.dtype == torch.float16
    assert torch.equal(loaded.rows, viewed.float())
    assert not torch.equal(loaded.rows, before)
    torch.testing.assert_close(loaded.rows, before, rtol=2**-10, atol=2**-24)
    assert torch.equal(loaded.state, table.state)
    whole = DiskStore(Folder(tmp_path / "whole"), facts(), {}, 1).save(table)
    spared = store.file_bytes(USER_0) - facts().file_bytes(USER_0)
    assert spared == -2 * before.numel()
    assert saved.file.size < whole.file.size
