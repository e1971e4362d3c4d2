import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biggraph.dist import messages
from biggraph.dist.messages import (
    MAX_BYTES,
    MAX_DEPTH,
    Envelope,
    Identity,
    Refused,
    Verifier,
    answer,
    seal,
    unseal,
)

SECRET = b"0123456789abcdef"
NAME = st.text(string.ascii_letters + string.digits + "-/ .", min_size=1, max_size=20)
NUMBER = st.integers(0, 2**63 - 1)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
ENVELOPE = st.builds(
    Envelope,
    kind=NAME,
    job=NAME,
    term=NAME,
    sender=NAME,
    incarnation=NUMBER,
    sequence=NUMBER,
    body=st.dictionaries(st.text(), VALUE, max_size=3),
)


def envelope(**fields) -> Envelope:
    fields = {"kind": "request", "job": "j", "term": "t", "sender": "w", **fields}
    return Envelope(**{"incarnation": 1, "sequence": 0, "body": {}, **fields})


def signed(text: bytes) -> bytes:
    """Return bytes with a valid signature, whatever they are."""
    return messages._sign(SECRET, text) + text


def fields(**changes) -> dict:
    return {"version": messages.VERSION, **vars(envelope()), **changes}


def reason(data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        unseal(SECRET, data)
    return caught.value.reason


@given(ENVELOPE)
def test_a_message_comes_back(message):
    assert unseal(SECRET, seal(SECRET, message)) == message


@given(ENVELOPE, st.data())
def test_any_changed_byte_is_refused(message, data):
    sealed = bytearray(seal(SECRET, message))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    assert reason(bytes(sealed)) == "signature"


@given(ENVELOPE, st.data())
def test_a_truncated_or_longer_message_is_refused(message, data):
    sealed = seal(SECRET, message)
    assert reason(sealed[: data.draw(st.integers(0, len(sealed) - 1))]) == "signature"
    assert reason(sealed + data.draw(st.binary(min_size=1))) == "signature"


@given(st.binary(max_size=200))
def test_garbage_is_refused(data):
    assert reason(data) == "signature"


@given(st.binary(max_size=100) | VALUE.map(lambda value: json.dumps(value).encode()))
def test_signed_garbage_is_refused_too(text):
    assert reason(signed(text)) in {"not JSON", "types", "version"}


def test_another_secret_is_refused():
    assert reason(seal(b"another secret ..", envelope())) == "signature"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xff", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": Infinity}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "too deep"),
        (b"[" * 100_000, "too deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "too deep"),
        (b"[]", "types"),
        (json.dumps(fields(version=2)).encode(), "version"),
        (json.dumps(fields(version="1")).encode(), "version"),
        (b"{}", "version"),
    ],
)
def test_what_is_no_envelope_is_refused(text, expected):
    assert reason(signed(text)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"incarnation": True},
        {"incarnation": -1},
        {"incarnation": 1.0},
        {"sequence": 2**63},
        {"sequence": "0"},
        {"sender": ""},
        {"sender": "w" * 201},
        {"sender": "w\n"},
        {"sender": "\ud800"},
        {"sender": None},
        {"job": ["j"]},
        {"body": []},
        {"more": 1},
    ],
)
def test_fields_of_wrong_types_are_refused(changes):
    assert reason(signed(json.dumps(fields(**changes)).encode())) == "types"


def test_a_missing_field_is_refused():
    found = fields()
    del found["term"]
    assert reason(signed(json.dumps(found).encode())) == "types"


def test_a_large_message_is_refused_before_anything_else():
    assert reason(bytes(MAX_BYTES + 1)) == "oversized"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"body": {"a": float("nan")}}, "not JSON compliant"),
        ({"body": {"a": {1, 2}}}, "cannot be written as JSON"),
        ({"body": {"a": "x" * MAX_BYTES}}, "limit"),
        ({"sender": "wörker"}, "printable ASCII"),
        ({"incarnation": -1}, "not negative"),
    ],
)
def test_a_body_that_cannot_be_sent_is_a_defect_of_the_caller(changes, named):
    with pytest.raises(ValueError, match=named):
        seal(SECRET, envelope(**changes))


def test_a_body_as_deep_as_can_be_sent_comes_back():
    body: dict = {}
    for _ in range(MAX_DEPTH - 2):
        body = {"a": body}
    message = envelope(body=body)
    assert unseal(SECRET, seal(SECRET, message)) == message
    with pytest.raises(ValueError, match="deeper"):
        seal(SECRET, envelope(body={"a": body}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"kind": "reply"}, "kind"),
        ({"job": "another"}, "job"),
        ({"term": "earlier"}, "term"),
        ({"sequence": 4}, "stale"),
        ({"sequence": 3}, "stale"),
        ({"sequence": 3, "incarnation": 2}, None),
        ({"sequence": 3, "sender": "v"}, None),
        ({"sequence": 900}, None),
    ],
)
def test_a_verifier_takes_what_is_new_of_its_job_and_term(changes, expected):
    verifier = Verifier(SECRET, "request", "j", "t")
    assert verifier.open(seal(SECRET, envelope(sequence=4))) == envelope(sequence=4)
    message = envelope(**{"sequence": 5, **changes})
    assert verifier.open(seal(SECRET, message)) == (None if expected else message)
    assert verifier.refused == ({expected: 1} if expected else {})


@given(st.lists(st.tuples(st.sampled_from("vw"), st.integers(0, 2), st.integers(0, 5))))
def test_each_message_counts_once_and_in_order(messages):
    """Against the plain rule: taken if larger than all before of the sender in its incarnation."""
    verifier, last = Verifier(SECRET, "request", "j", "t"), {}
    for sender, incarnation, sequence in messages:
        message = envelope(sender=sender, incarnation=incarnation, sequence=sequence)
        expected = sequence > last.get((sender, incarnation), -1)
        assert (verifier.open(seal(SECRET, message)) is not None) == expected
        last[sender, incarnation] = max(sequence, last.get((sender, incarnation), -1))


def test_a_forgery_does_not_use_up_a_sequence_number():
    verifier = Verifier(SECRET, "request", "j", "t")
    assert verifier.open(seal(b"another secret ..", envelope(sequence=9))) is None
    assert verifier.open(seal(SECRET, envelope(sequence=9, term="earlier"))) is None
    assert verifier.open(seal(SECRET, envelope(sequence=0))) is not None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"kind": "request"}, "kind"),
        ({"term": "earlier"}, "term"),
        ({"job": "another"}, "job"),
        ({"sender": "v"}, "sender"),
        ({"incarnation": 6}, "stale"),
        ({"sequence": 2}, "stale"),
    ],
)
def test_only_the_answer_to_the_question_counts(changes, expected):
    identity = Identity(SECRET, "j", "w", 7)
    question = unseal(SECRET, identity.seal("request", "t", 3, {"a": 1}))
    reply = unseal(SECRET, answer(SECRET, question, "reply", {"b": 2}))
    sealed = seal(SECRET, Envelope(**{**vars(reply), **changes}))
    if expected is None:
        assert identity.open_answer("reply", "t", 3, sealed).body == {"b": 2}
    else:
        with pytest.raises(Refused, match=expected):
            identity.open_answer("reply", "t", 3, sealed)


def test_sequence_numbers_rise():
    identity = Identity(SECRET, "j", "w", 0)
    numbers = [identity.next_sequence() for _ in range(5)]
    assert numbers == sorted(set(numbers))
