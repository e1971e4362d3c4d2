"""Which columns of a source are head, relation, tail and weight, and whether a header names them.

Works on the fields of the first line or the names of a table; reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from biggraph.errors import InputError, did_you_mean
from biggraph.graph.lines import NO_COLUMN, Positions, plural
from biggraph.graph.spec import NO_RELATION

DEFAULT_NAMES = ("head", "relation", "tail", "weight")
HEADER_WORDS = {
    "head",
    "relation",
    "tail",
    "weight",
    "source",
    "target",
    "src",
    "dst",
    "from",
    "to",
}
HEADER_WORDS |= {"subject", "predicate", "object", "lhs", "rel", "rhs", "node1", "node2"}
HEADER_WORDS |= {"entity1", "entity2", "relationship", "edge_type"}


def begins_with_header(columns: Sequence[str] | None, fields: Sequence[str], place: str) -> bool:
    """Return whether the first line is a header, where the user did not say.

    Raises:
        InputError: it looks like one, but that would be a guess.
    """
    if columns is not None and any(not _is_position(name) for name in columns):
        return True
    plain = tuple(_plain(fields))
    if plain in (DEFAULT_NAMES, DEFAULT_NAMES[:3], ("head", "tail")):
        return True
    if set(plain) <= HEADER_WORDS:
        raise InputError(
            f"{place}: looks like a header ({', '.join(fields)}); choose --columns by name, or say "
            "--header or --no-header (in Python columns, header=True or False)"
        )
    return False


def _is_position(name: str) -> bool:
    return name.isdecimal() or name == NO_RELATION


def choose_columns(
    columns: Sequence[str] | None, fields: Sequence[str], place: str, *, named: bool
) -> Positions:
    """Return the positions of head, relation, tail and weight among `fields`.

    Args:
        columns: names or positions as the user gave them; None: judged by their number.
        fields: column names (or the first line, where `named` is false).
        place: names the source in errors.
        named: whether `fields` are names.

    Raises:
        InputError: a column does not exist, or it is not clear which to read.
    """
    if columns is None:
        columns = _default_columns(fields, place, named)
    found = [_position(name, fields, place, named) for name in columns]
    if len(found) == 2:
        return Positions(found[0], NO_COLUMN, found[1], NO_COLUMN)
    weight = found[3] if len(found) == 4 else NO_COLUMN
    return Positions(found[0], found[1], found[2], weight)


def _default_columns(fields: Sequence[str], place: str, named: bool) -> Sequence[str]:
    plain = _plain(fields) if named else []
    if {"head", "tail"} <= set(plain):
        if "relation" in plain or set(plain) <= set(DEFAULT_NAMES):
            found = [name if name in plain else NO_RELATION for name in DEFAULT_NAMES]
            found = found[: 4 if "weight" in plain else 3]
            return [n if n == NO_RELATION else fields[plain.index(n)] for n in found]
    elif len(fields) in (2, 3, 4):
        return [str(position) for position in range(len(fields))]
    shown = ", ".join(repr(text[:30]) for text in fields[:6])
    raise InputError(
        f"{place}: found {plural(len(fields), 'column')} ({shown}); say which to read, such as "
        "columns=0,1,2 for head, relation, tail"
    )


def _plain(fields: Sequence[str]) -> list[str]:
    return [text.strip().lower() for text in fields]


def _position(name: str, fields: Sequence[str], place: str, named: bool) -> int:
    if name == NO_RELATION:
        return NO_COLUMN
    if named and name in fields:
        if list(fields).count(name) > 1:
            raise InputError(f'{place}: two columns are named "{name}"; give positions from 0')
        return list(fields).index(name)
    if name.isdecimal():
        if int(name) < len(fields):
            return int(name)
        raise InputError(f"{place}: no column {name}; there are {len(fields)}, counted from 0")
    remedy = did_you_mean(name, [text[:40] for text in fields])
    raise InputError(f'{place}: no column named "{name}"{remedy}; positions from 0 work too')
