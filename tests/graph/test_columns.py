"""Which columns are read, and whether the first line is a header: found out, or asked for."""

import re

import pyarrow as pa
import pytest

GOOD = "a\tr\tb\nb\tr\tc\n"
EXPECTED = {("a", "r", "b", 1.0): 1, ("b", "r", "c", 1.0): 1}


def test_headers_and_columns_by_name(source, build, triples):
    text = "w\tto\tfrom\tkind\n1\tb\ta\tr\n1\tc\tb\tr\n"
    for options in (
        {"columns": ["from", "kind", "to"]},
        {"columns": ["2", "3", "1"], "header": True},
    ):
        assert triples(build([source(text)], **options)) == EXPECTED
    csv = source(text.replace("\t", ","), "a.csv")
    assert triples(build([csv], columns=["from", "kind", "to", "w"])) == EXPECTED


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("head\trelation\ttail\na\tr\tb\nb\tr\tc\n", ["0", "1", "2"]),
        ("Head\tRelation\tTail\tWeight\na\tr\tb\t1\nb\tr\tc\t1\n", ["0", "1", "2", "3"]),
        ("head\ttail\na\tb\nb\tc\n", ["0", "1"]),
        ("head\ttail\na\tb\nb\tc\n", None),
    ],
)
def test_a_header_of_default_names_is_skipped(source, build, triples, text, columns):
    found = triples(build([source(text)], columns=columns))
    assert {(h, t) for h, _, t, _ in found} == {("a", "b"), ("b", "c")}
    assert len(found) == 2


@pytest.mark.parametrize(
    "first", ["source\ttarget", "From\tTo\tweight", "subject\tpredicate\tobject", "tail\thead"]
)
def test_what_may_be_a_header_is_asked_for(source, refuse, build, first):
    edge = "\t".join(["1", "2", "3"][: first.count("\t") + 1])
    path = source(f"{first}\n{edge}\n")
    assert f"{path}:1: looks like a header (" in refuse([path])
    build([path], header=True)
    assert build.reports[-1].rows == {"train": 1}
    build([path], header=False)
    assert build.reports[-1].rows == {"train": 2}


def test_default_names_are_found_in_any_order(source, build, triples, refuse):
    text = "tail\thead\nb\ta\nc\tb\n"
    expected = {("a", "edge", "b", 1.0): 1, ("b", "edge", "c", 1.0): 1}
    assert triples(build([source(text)], header=True)) == expected
    table = pa.table({"tail": ["b", "c"], "head": ["a", "b"]})
    assert triples(build(table)) == expected
    weighted = source("weight\ttail\thead\n2\tb\ta\n", "w.tsv")
    assert triples(build([weighted], header=True)) == {("a", "edge", "b", 2.0): 1}
    other = source("tail\tcolour\thead\nb\tred\ta\n", "o.tsv")
    assert "found 3 columns ('tail', 'colour', 'head'); say which" in refuse([other], header=True)


@pytest.mark.parametrize(
    "text", ["a b c\na\tr\tb\n", "\na\tr\tb\n\na\tr\nb\tr\tc\n", "h\tt\na\tr\tb\n"]
)
def test_a_first_line_that_cannot_tell_the_width_is_refused(source, refuse, text):
    path = source(text)
    line = 2 if text[0] != "\n" else 4
    for header in (False, True):
        message = refuse([path], columns=["0", "0"], skip_bad_lines=True, header=header)
        assert re.search(rf"^{path}:{line}: \d columns, expected \d as in {path}:\d;", message)


def test_files_that_disagree_in_columns_are_refused(source, refuse, build):
    two, three = source("a\tb\n", "two.tsv"), source("a\tr\tb\n", "three.tsv")
    expected = f"{three}: read as 3 columns, but {two} as 2; say by columns which to read"
    assert expected in refuse([two, three])
    assert expected in refuse([two], test=[three])
    build([two, three], columns=["0", "1"])


def test_two_columns_have_one_relation(source, build, triples):
    path = source("a\tb\n")
    assert triples(build([path])) == {("a", "edge", "b", 1.0): 1}
    assert triples(build([path], relations=[("likes", "x", "y")])) == {("a", "likes", "b", 1.0): 1}


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (
            ["form", "kind", "to"],
            "from\tkind\tto\na\tr\tb\n",
            ':1: no column named "form"; did you mean "from"?',
        ),
        (["0", "1", "7"], GOOD, ":1: no column 7; there are 3, counted from 0"),
        (["x", "y", "z"], "x\tx\ty\tz\na\tb\tc\td\n", ':1: two columns are named "x"'),
    ],
)
def test_columns_that_do_not_exist(source, refuse, columns, text, message):
    path = source(text)
    assert f"{path}{message}" in refuse([path], columns=columns)


def test_columns_choose_and_a_dash_is_no_relation(source, build, triples):
    path = source("0.5\tx\ta\tb\n2\tx\tb\tc\n")
    graph = build([path], columns=["2", "-", "3", "0"])
    assert triples(graph) == {("a", "edge", "b", 0.5): 1, ("b", "edge", "c", 2.0): 1}
