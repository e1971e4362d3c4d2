"""Plain lines cut by compiled code, beside splitting them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.graph.fields import cut, to_strings
from biggraph.graph.hashing import texts_of
from biggraph.graph.lines import Delimited, Positions

pieces = st.lists(
    st.sampled_from(["a", "é", "\t", "\n", "\r\n", "\r", "\0", '"', ",", "long name"])
)


def naive(text, delimiter, width, wanted):
    """Return the wanted columns, or None where anything in the text is not plain."""
    try:
        lines = text.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        return None
    if lines[-1] == "":
        lines.pop()
    rows = [line.split(delimiter) for line in lines]
    odd = {"\r", "\0"} | ({'"'} if delimiter == "," else set())
    if any(odd & set(line) for line in lines) or any(len(row) != width for row in rows):
        return None
    if any(row[k] == "" for row in rows for k in wanted):
        return None
    return [[row[k] for row in rows] for k in wanted]


def found(text, delimiter, width, wanted):
    columns = cut(text, delimiter, width, wanted)
    return None if columns is None else [to_strings(names).to_pylist() for names in columns]


@settings(deadline=None, max_examples=300)
@given(pieces, st.sampled_from("\t,"), st.sampled_from([(1, [0]), (2, [1]), (3, [0, 1, 2])]))
def test_any_text_is_cut_as_by_splitting_or_left_to_others(parts, delimiter, columns):
    text = "".join(parts).encode()
    assert found(text, delimiter, *columns) == naive(text, delimiter, *columns)


@pytest.mark.parametrize("damage", [b"", b"\t", b"\n", b"\r", b"\0", b"\xff", b'"', b"\r\n", b","])
def test_damage_anywhere_is_noticed(damage):
    text = "a\trr\tbbé\r\nname\tr\tx\n1\t2\t3".encode()
    for at in range(len(text) + 1):
        damaged = text[:at] + damage + text[at:]
        assert found(damaged, "\t", 3, [0, 2]) == naive(damaged, "\t", 3, [0, 2])


def test_wanted_columns_may_stand_anywhere_and_repeat():
    lines = Delimited("\t", 4, Positions(3, 1, 3, 0))
    columns = lines.parse(b"1\tr\t\ta\n2.5\tr\tx\tb\n")
    assert to_strings(columns.lhs).to_pylist() == to_strings(columns.rhs).to_pylist() == ["a", "b"]
    assert to_strings(columns.rel).to_pylist() == ["r", "r"]
    assert columns.weight.tolist() == [1, 2.5]
    assert lines.parse(b"x\tr\t\ta\n") is None


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=20), st.data())
def test_names_of_a_mask(texts, data):
    keep = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    names = texts_of(pa.array(texts, pa.string())).filter(np.array(keep, np.bool_))
    expected = [text for text, kept in zip(texts, keep, strict=True) if kept]
    assert to_strings(names).to_pylist() == expected
