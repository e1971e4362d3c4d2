"""Which files to read and what they are: expands folders and globs, looks at the first bytes.

Content decides compression and refuses what is not a table of edges; the name decides between TSV,
CSV and N-Triples. Reads a few bytes of each file and parses nothing.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from biggraph.errors import InputError

KINDS = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".nt": "ntriples", ".ntriples": "ntriples"}
KINDS |= {".parquet": "parquet", ".pq": "parquet"}
PACKED = {".gz", ".gzip", ".zst", ".zstd"}
COMPRESSION = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
FOREIGN = {
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint, an .npz or a spreadsheet)",
    b"ARROW1": "an Arrow file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"SQLite format": "an SQLite database",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
READABLE = "TSV, CSV, N-Triples (plain, gzip, zstd) and Parquet are read"


@dataclass(frozen=True)
class Source:
    """One file to read.

    Args:
        path: where it is.
        kind: tsv, csv, ntriples or parquet.
        compression: None, gzip or zstd, judged by content.
        size: bytes on disk.
    """

    path: Path
    kind: str
    compression: str | None
    size: int


def expand(given: Sequence[str | Path]) -> list[Source]:
    """Return the files that paths, folders and globs name, each once per mention, sorted by folder.

    Raises:
        InputError: nothing there, unreadable, or not a table of edges.
    """
    return [_inspect(path) for item in given for path in _files(item)]


def refuse_repeats(sources: Sequence[Source]) -> None:
    """Refuse a file that is named twice, in one split or in two.

    Raises:
        InputError: names the file.
    """
    seen: set[Path] = set()
    for source in sources:
        path = source.path.resolve()
        if path in seen:
            raise InputError(f"{source.path}: given twice; its edges would count twice")
        seen.add(path)


def _files(item: str | Path) -> list[Path]:
    path = Path(item)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p.relative_to(path)))
        if not found:
            endings = " ".join(sorted(KINDS))
            raise InputError(f"{path}: no files to read in this folder (looked for {endings})")
        return found
    matches = sorted(Path(match) for match in glob.glob(str(item), recursive=True))
    matches = [match for match in matches if match.is_file()]
    if not matches:
        raise InputError(f"{item}: no such file, folder or glob")
    return matches


def _is_data(relative: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in relative.parts)
    return not hidden and _suffix(relative) in KINDS


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _inspect(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise InputError(f"{path}: empty file")
    kind = KINDS.get(_suffix(path), "tsv")
    _refuse_foreign(path, head)
    if head.startswith(b"PAR1") or kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise InputError(f"{path}: named as Parquet but is not; {READABLE}")
        return Source(path, "parquet", None, size)
    compression = next((c for magic, c in COMPRESSION.items() if head.startswith(magic)), None)
    source = Source(path, kind, compression, size)
    if compression:
        with open_text(source) as read:
            _refuse_foreign(path, read(512))
    return source


def _refuse_foreign(path: Path, head: bytes) -> None:
    found = next((what for magic, what in FOREIGN.items() if head.startswith(magic)), None)
    if found is None and head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        found = "a Python pickle"
    if found is None and head[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        raise InputError(f"{path}: {found}; {READABLE}")


@contextmanager
def open_text(source: Source) -> Iterator[Callable[[int], bytes]]:
    """Give a function that reads the next decompressed bytes of a text source.

    Raises:
        InputError: the file cannot be read or its compression is broken; also while reading.
    """
    with ExitStack() as opened:
        with _explained(source):
            stream = opened.enter_context(pa.OSFile(str(source.path)))
            if source.compression:
                packed = pa.CompressedInputStream(stream, source.compression)
                stream = opened.enter_context(packed)

        def read(size: int) -> bytes:
            with _explained(source):
                content: bytes = stream.read(size)
                return content

        yield read


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        packed = f"damaged or truncated {source.compression} file"
        what = packed if source.compression else "cannot be read"
        raise InputError(f"{source.path}: {what} ({error})") from None
