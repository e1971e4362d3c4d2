import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.graph.hashing import (
    Hashes,
    add_counts,
    has_collision,
    hash_names,
    mix_columns,
    sort_order,
    texts_of,
)

names = st.lists(st.text(max_size=40), max_size=30)


def hashed(texts, salt=0, kind=None):
    array = pa.array(texts, kind or pa.string())
    return hash_names(texts_of(array), np.full(len(texts), salt, np.uint64))


def reference_murmur(data: bytes, seed: int) -> tuple[int, int]:
    """MurmurHash3_x64_128 as its author wrote it, on Python integers."""
    mask, c1, c2 = (1 << 64) - 1, 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(x, r):
        return (x << r | x >> (64 - r)) & mask

    def finish(x):
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = ((x ^ x >> 33) * factor) & mask
        return x ^ x >> 33

    h1 = h2 = seed
    body = len(data) // 16 * 16
    for at in range(0, body, 16):
        k1, k2 = (int.from_bytes(data[at + i : at + i + 8], "little") for i in (0, 8))
        h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & mask
        h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & mask
    k1, k2 = (int.from_bytes(data[body + i : body + i + 8], "little") for i in (0, 8))
    h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
    h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    h1, h2 = finish(h1), finish(h2)
    h1 = (h1 + h2) & mask
    return h1, (h2 + h1) & mask


def test_hash_equals_the_published_vectors():
    hashes = hashed(["hello", "", "The quick brown fox jumps over the lazy dog"])
    assert [hex(h) for h in hashes.hi] == ["0xcbd8a7b341bd9b02", "0x0", "0xe34bbc7bbc071b6c"]
    assert [hex(h) for h in hashes.lo] == ["0x5b1e906a48ae1d19", "0x0", "0x7a433ca9c49a9347"]


@settings(deadline=None)
@given(names, st.integers(0, 2**64 - 1))
def test_hash_equals_the_reference(texts, salt):
    hashes = hashed(texts, salt)
    expected = [reference_murmur(text.encode(), salt) for text in texts]
    assert list(zip(hashes.hi.tolist(), hashes.lo.tolist(), strict=True)) == expected


def test_hash_reads_slices_and_large_strings_alike():
    texts = [f"name {i}" for i in range(20)]
    expected = hashed(texts[5:9])
    large = pa.array(texts, pa.large_string()).slice(5, 4)
    for array in (pa.array(texts).slice(5, 4), large):
        found = hash_names(texts_of(array), np.zeros(4, np.uint64))
        np.testing.assert_array_equal(found.hi, expected.hi)
        np.testing.assert_array_equal(found.lo, expected.lo)


@settings(deadline=None)
@pytest.mark.parametrize("kind", ["quicksort", "stable"])
@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2))))
def test_order_sorts_by_both_lanes(pairs, kind):
    hashes = Hashes(*(np.array([pair[k] for pair in pairs], np.uint64) for k in (0, 1)))
    order = sort_order(hashes, kind)
    assert [pairs[i] for i in order] == sorted(pairs)
    assert sorted(order) == list(range(len(pairs)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [("a b bb bb", False), ("a b bb bc", True), ("a b b bb", True), ("a bb bb a", False)],
)
def test_equal_hashes_of_unequal_names_are_found(names, expected):
    hashes = Hashes(np.array([9, 1, 4, 4], np.uint64), np.array([0, 0, 2, 2], np.uint64))
    if names == "a bb bb a":
        hashes = Hashes(np.array([9, 1, 4, 9], np.uint64), np.zeros(4, np.uint64))
    assert has_collision(texts_of(pa.array(names.split())), hashes, sort_order(hashes)) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2))), st.integers(0, 2**63 - 1))
def test_mixing_depends_on_values_only(rows, seed):
    a, b = (np.array([row[k] for row in rows], np.int64) for k in (0, 1))
    mixed = mix_columns(seed, a, b.astype(np.int32)) if rows else np.zeros(0)
    assert len(set(mixed.tolist())) == len(set(rows))


def test_counts_add_repeats():
    counts = np.zeros(3, np.uint32)
    add_counts(counts, np.array([0, 2, 2, 2]))
    assert counts.tolist() == [1, 0, 3]
