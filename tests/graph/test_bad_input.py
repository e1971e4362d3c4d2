"""Every way in which sources can be wrong is one clear sentence with file and line."""

import gzip
import io
import pickle
import re
import zipfile
from collections import Counter

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biggraph.errors import InputError
from biggraph.graph.graph import Graph
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec

GOOD = "a\tr\tb\nb\tr\tc\n"
EXPECTED = {("a", "r", "b", 1.0): 1, ("b", "r", "c", 1.0): 1}


def gz(data: bytes) -> bytes:
    # Without a time in it: contents name tests, alike in every process.
    return gzip.compress(data, mtime=0)


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a\tr\tb\na\tr\n", 2, "2 columns, expected 3"),
        ("a\tr\tb\na\tr\tb\tx\n", 2, "4 columns, expected 3"),
        ("a\tr\tb\n\n\na r b\n", 4, "1 column, expected 3"),
        ("a\tr\tb\n\tr\tb\n", 2, "empty head"),
        ("a\tr\tb\na\t\tb\n", 2, "empty relation"),
        ("a\tr\tb\na\tr\t\n", 2, "empty tail"),
        (b"a\tr\tb\na\tr\t\xff\n", 2, "not valid UTF-8 (byte 0xff)"),
        (b"a\tr\tb\na\tr\tb\0\n", 2, "NUL byte"),
        ("a\tr\tb\t1\na\tr\tb\tnan\n", 2, "weight nan is not a finite number"),
        ("a\tr\tb\t1\na\tr\tb\t-inf\n", 2, "weight -inf is not a finite number"),
        ("a\tr\tb\t1\na\tr\tb\t1e39\n", 2, "weight 1e39 is not a finite number"),
        ("a\tr\tb\t1\na\tr\tb\t-0.5\n", 2, "weight -0.5 is not a finite number"),
        ("a\tr\tb\t1\na\tr\tb\tx\n", 2, 'weight "x" is not a number'),
        ("a\tr\tb\t1\na\tr\tb\t\n", 2, 'weight "" is not a number'),
        ("a\tb\tc\td\te\n", 1, "found 5 columns"),
        ("a\n", 1, "found 1 column "),
        (b"\xc3\x28\tr\tb\n", 1, "not valid UTF-8"),
    ],
)
def test_bad_lines_name_file_line_and_what_was_found(source, refuse, text, line, found):
    path = source(text)
    assert re.search(rf"^{re.escape(str(path))}:{line}: .*{re.escape(found)}", refuse([path]))


def test_a_bad_line_far_into_a_file_is_counted_right(source, refuse, any_memory):
    lines = ["a\tr\tb"] * 50_000 + ["", "a\tr"] + ["a\tr\tb"] * 1000
    for ending, name in (("\n", "unix.tsv"), ("\r\n", "dos.tsv")):
        path = source(ending.join(lines), name)
        assert f"{path}:50002: 2 columns, expected 3" in refuse([path], memory=1 << 16)


def test_skipping_reports_lines_and_keeps_the_rest(source, build, triples):
    path = source(b"a\tr\tb\nb\tr\tc\n\nbad\n\xff\tr\tb\n")
    graph = build([path], skip_bad_lines=True)
    report = build.reports[-1]
    assert triples(graph) == EXPECTED
    assert report.skipped_count == 2
    assert [(file, line) for file, line, _ in report.skipped] == [(str(path), 4), (str(path), 5)]
    assert report.rows == {"train": 2}


def test_the_first_hundred_skipped_lines_are_listed(source, build):
    build([source(GOOD + "bad\n" * 250)], skip_bad_lines=True)
    assert build.reports[-1].skipped_count == 250
    assert len(build.reports[-1].skipped) == 100


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (GOOD, "a.tsv"),
        (GOOD.rstrip(), "no-final-newline.tsv"),
        (GOOD.replace("\n", "\r\n"), "dos.tsv"),
        ("\ufeff" + GOOD, "bom.tsv"),
        ("\n" + GOOD + "\n\n", "blank.tsv"),
        (GOOD, "no-suffix"),
        (GOOD.replace("\t", ","), "a.csv"),
        ('"a",r,"b"\nb,"r",c\n', "quoted.csv"),
        (gz(GOOD.encode()), "a.tsv.gz"),
        (gz(b"a\tr\tb\n") + gz(b"b\tr\tc\n"), "two-members.tsv.gz"),
        (zst(GOOD.encode()), "a.tsv.zst"),
        (gz(GOOD.encode()), "gzip-without-suffix.tsv"),
        (GOOD, "plain-with-suffix.tsv.gz"),
        ("head\trelation\ttail\n" + GOOD, "header.tsv"),
        ("<a> <r> <b> .\n# comment\n\n<b>\t<r> <c>. # done\n", "a.nt"),
    ],
)
def test_good_files(source, build, triples, content, name):
    assert triples(build([source(content, name)])) == EXPECTED


def test_names_of_ntriples(source, build, triples):
    path = source('<http://x/é> <r> "a \\" b"@en .\n_:b1 <r> "1"^^<http://int> .\n', "a.nt.gz")
    expected = {("http://x/é", "r", '"a \\" b"@en', 1): 1, ("_:b1", "r", '"1"^^<http://int>', 1): 1}
    assert triples(build([path])) == expected


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'"c"x,r,b,1', False),
        (b'"c" ,r,b,1', False),
        (b'"c""x",r,"b,""d",1', True),
        (b'c"x",r,b,1', True),
        (b"c,r,b,1_0", False),
        (b"c,r,b, 10 ", True),
        (b"c,r,b,+1", True),
        (b"c,r,b,1,Z\xfcrich", True),
        (b"c\xfc,r,b,1", False),
    ],
)
def test_a_line_reads_alike_whatever_its_neighbours(source, build, line, kept, other):
    """One bad line makes its block be read line by line; that must change nothing else."""
    note = b"" if line.endswith(b"rich") else b",note"
    rows = [b"a,r,b,1,note", line + note, *([b"bad"] if other else []), b"b,r,c,2,note"]
    path = source(b"\n".join(rows), "a.csv")
    build([path], columns=["0", "1", "2", "3"], skip_bad_lines=True)
    assert build.reports[-1].rows == {"train": 2 + kept}


@pytest.mark.parametrize("bad", ["", "bad\n"])
@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("<a> <r> <b> . # x\r<b> <r> <c> .\r\n", "a.nt", 2),
        ('<a> <r> "b\rc" .\n<a> <r> <b> .\n', "a.nt", 1),
        ("a,r,b\rb,r,c\r\n", "a.csv", 2),
        ('a,r,b\na,r,"b\rc"\n', "a.csv", 1),
    ],
)
def test_a_carriage_return_ends_a_line_wherever_it_stands(source, build, text, name, count, bad):
    build([source(text + bad, name)], skip_bad_lines=True)
    assert build.reports[-1].rows == {"train": count}


@pytest.mark.parametrize(
    "line",
    ["<a> <r> <b>", "a <r> <b> .", "<a> <r> .", '<a> "r" <b> .', '<a> <r> "b .', "<a> <r> <b> . x"],
)
def test_malformed_triples(source, refuse, build, line):
    path = source(f"<a> <r> <b> .\n# fine\n{line}\n", "a.nt")
    assert f"{path}:3: not a triple" in refuse([path])
    build([path], skip_bad_lines=True)
    assert build.reports[-1].skipped_count == 1


def test_quoted_csv_must_close(source, refuse):
    path = source('a,r,b\n"a,r,b\nc",r,b\n', "a.csv")
    assert f"{path}:2: a quoted field is not closed" in refuse([path])


def test_unlisted_relations_name_the_line(source, refuse):
    path = source("a\tlikes\tb\n\nb\tlkes\tc\n")
    message = refuse([path], relations=[("likes", "x", "y")])
    assert f'{path}:3: relation "lkes" is not among [[relations]]; did you mean "likes"?' in message


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps([("a", "r", "b")]), "a Python pickle"),
        (npy(), "a NumPy array"),
        (torch_zip(), "a zip archive"),
        (gz(pickle.dumps(["a"])), "a Python pickle"),
        (b"\xff\xfea\0\t\0", "UTF-16 text"),
        (b"", "empty file"),
        (b"\n\n", "empty file"),
    ],
    # The contents hold times and addresses, which would name the tests anew in each process.
    ids=["pickle", "npy", "zip", "gzipped pickle", "utf-16", "empty", "blank"],
)
@pytest.mark.parametrize("name", ["edges.tsv", "edges.pt"])
def test_foreign_files_are_refused_by_content(source, refuse, content, what, name):
    assert what in refuse([source(content, name)])


def test_hdf5_is_refused(tmp_path, refuse):
    with h5py.File(tmp_path / "edges.tsv", "w") as file:
        file["lhs"] = [1]
    assert f"{tmp_path / 'edges.tsv'}: an HDF5 file" in refuse([tmp_path / "edges.tsv"])


@pytest.mark.parametrize("pack", [gz, zst])
def test_truncated_compression(source, refuse, pack):
    generator = np.random.default_rng(0)
    rows = "".join(f"e{a}\tr\te{b}\n" for a, b in generator.integers(0, 10**6, (20_000, 2)))
    packed = pack(rows.encode())
    path = source(packed[: len(packed) // 2])
    assert re.search(rf"{path}: damaged or truncated (gzip|zstd) file", refuse([path]))


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_types(tmp_path, build, triples):
    head = pa.array(["a", "b"]).dictionary_encode()
    rel = pa.array(["r", "r"], pa.large_string())
    path = tmp_path / "a.parquet"
    parquet(path, {"head": head, "relation": rel, "tail": pa.array([7, -(2**62)])})
    expected = {("a", "r", "7", 1.0): 1, ("b", "r", str(-(2**62)), 1.0): 1}
    assert triples(build([path])) == expected
    parquet(path, {"x": ["a"], "y": [b"r"], "z": ["7"], "w": [2]}, row_group_size=1)
    assert triples(build([path])) == {("a", "r", "7", 2.0): 1}
    assert triples(build([path], columns=["z", "y", "x"])) == {("7", "r", "a", 1.0): 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"head": ["a", None], "relation": ["r", "r"], "tail": ["b", "b"]}, ":2: head is missing"),
        ({"head": ["a", "b"], "relation": ["r", "r"], "tail": ["", "b"]}, ":1: tail is missing"),
        ({"head": [1.5], "relation": ["r"], "tail": ["b"]}, "head column has type double"),
        ({"head": [["a"]], "relation": ["r"], "tail": ["b"]}, "head column has type list"),
        ({"a": ["a"], "b": ["r"], "c": ["b"], "d": [-1.0]}, ":1: weight is not a finite number"),
        ({"a": ["a"], "b": ["r"], "c": ["b"], "d": [None]}, "weight"),
        ({"a": ["a"], "b": ["r"], "c": ["b"], "d": ["x"]}, "weight column has type string"),
        ({"a": ["a"]}, "found 1 column "),
        ({"head": [b"\xff"], "relation": ["r"], "tail": ["b"]}, ":1: head is not valid UTF-8"),
    ],
)
def test_bad_parquet(tmp_path, refuse, columns, message):
    path = parquet(tmp_path / "a.parquet", columns)
    found = refuse([path])
    assert str(path) in found
    assert message in found


def test_parquet_rows_are_skipped_where_allowed(tmp_path, build, triples):
    columns = {"head": ["a", None, "b"], "relation": ["r"] * 3, "tail": ["b", "x", "c"]}
    path = parquet(tmp_path / "a.parquet", columns)
    assert triples(build([path], skip_bad_lines=True)) == EXPECTED
    assert build.reports[-1].skipped == [(str(path), 2, "head is missing or empty")]


def test_damaged_parquet(tmp_path, refuse):
    path = parquet(tmp_path / "a.parquet", {"a": ["a"] * 99, "b": ["b"] * 99, "c": ["c"] * 99})
    content = path.read_bytes()
    for cut in (4, 20, len(content) - 9):
        path.write_bytes(content[:cut])
        assert f"{path}: damaged Parquet file" in refuse([path])
    path.write_bytes(b"a\tr\tb\n")
    assert "named as Parquet but is not" in refuse([path])


@pytest.mark.parametrize("error", [ValueError, pa.ArrowInvalid])
def test_errors_of_the_progress_callback_stay_what_they_are(source, tmp_path, error):
    """A caller's own fault is not blamed on the file that was being read."""
    columns = {"head": ["a"], "relation": ["r"], "tail": ["b"]}
    for path in (source(GOOD), parquet(tmp_path / "a.parquet", columns)):

        def fail(*_):
            raise error("mine")

        with pytest.raises(error, match=r"^mine$"):
            import_graph([path], tmp_path / "out", spec=ImportSpec(on_progress=fail))


def test_large_integers_are_weights(tmp_path, build, triples):
    table = parquet(tmp_path / "a.parquet", {"a": ["a"], "b": ["r"], "c": ["b"], "d": [2**53 + 1]})
    assert triples(build([table])) == {("a", "r", "b", 2.0**53): 1}


def test_folders_and_globs(source, build, triples, tmp_path):
    source("a\tr\tb\n", "d/one.tsv")
    source("b,r,c\n", "d/sub/two.csv")
    source("not edges", "d/README")
    source("x\n", "d/.hidden.tsv")
    assert triples(build([tmp_path / "d"])) == EXPECTED
    assert triples(build([f"{tmp_path}/d/**/*.[ct]sv"])) == EXPECTED
    assert triples(build(str(tmp_path / "d"))) == EXPECTED


def test_sources_that_do_not_exist(tmp_path, refuse, source):
    assert f"{tmp_path / 'none'}: no such file" in refuse([tmp_path / "none"])
    assert "no sources" in refuse([])
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no files to read" in refuse([tmp_path / "empty"])
    path = source(GOOD)
    assert f"{path}: given twice" in refuse([path, path])
    assert f"{path}: given twice" in refuse([path], test=[path])


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_read_or_refused_cleanly(data, tmp_path_factory, triples):
    """Random damage to a good file never crashes and never changes what other lines say."""
    text = bytearray(b"a\tr\tb\nbb\tr\tcc\nx y\tr\tz\n")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\t", b"\n", b"\r", b"\0", b"\xff", b'"', b"\x1f\x8b", b"q"])
        )
        text[at : at + data.draw(st.integers(0, 2))] = piece
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.tsv").write_bytes(text)
    expected = naive_lines(bytes(text))
    try:
        import_graph([folder / "a.tsv"], folder / "g", spec=ImportSpec(skip_bad_lines=True))
    except InputError:
        assert not (folder / "g").exists()
    else:
        assert triples(Graph.open(folder / "g")) == expected


def naive_lines(text: bytes) -> Counter:
    """Return the edges of the lines that have the columns of the first line."""
    width, found = None, Counter()
    for line in re.split(rb"\r\n|\n|\r", text):
        fields = line.split(b"\t")
        if not line:
            continue
        width = width or len(fields)
        try:
            names = [field.decode() for field in fields]
        except UnicodeDecodeError:
            continue
        if len(fields) != width or b"\0" in line:
            continue
        head, tail = names[0], names[2] if width > 2 else names[-1]
        relation = names[1] if width > 2 else "edge"
        if head and tail and relation:
            found[head, relation, tail, 1.0] += 1
    return found
