"""From bytes to frames: nothing dropped, nothing invented, in linear time, whatever the bytes are."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warehouse import framing
from warehouse.framing import BLOCK, MAX_FRAME, frames


def framed(content: bytes, *, document: bool = False, piece: int = 0) -> list[tuple[int, bytes]]:
    """(line number, frame) of everything, the content handed over in pieces of `piece` bytes (0: as one)."""
    pieces = [content[at : at + piece] for at in range(0, len(content), piece)] if piece else [content]
    found = []
    for batch in frames(pieces, document=document):
        assert len(batch.lines) == len(batch.numbers)
        found += zip(batch.numbers, batch.lines, strict=True)
    return found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n \r\n\t\n", []),
        (b'{"a":1}', [(1, b'{"a":1}')]),
        (b'{"a":1}\n{"a":2}\n', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
        (b'{"a":1}\r\n{"a":2}\r\n', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
        (b'\xef\xbb\xbf{"a":1}\n\n\n{"a":2}', [(1, b'{"a":1}'), (4, b'{"a":2}')]),
        (b'{"a":1}{"a":2} {"a":3}\n{"a":4}', [(1, b'{"a":1}'), (1, b'{"a":2}'), (1, b'{"a":3}'), (2, b'{"a":4}')]),
        (b'{\n "a": {\n}\n}\n{"a":2}', [(1, b'{\n "a": {\n}\n}'), (5, b'{"a":2}')]),
        (b'{"a": {}\n, "b": 1}\n{"a":2}', [(1, b'{"a": {}\n, "b": 1}'), (3, b'{"a":2}')]),
        (b'{"a":[{"b":1}\n,{"b":2}\n]}', [(1, b'{"a":[{"b":1}\n,{"b":2}\n]}')]),
        (b'{"a":"}{"}\n{"a":"} {"}', [(1, b'{"a":"}{"}'), (2, b'{"a":"} {"}')]),
        (b'{"a":1} tail\n{"a":2}', [(1, b'{"a":1} tail'), (2, b'{"a":2}')]),
        (b'{"a":1},\n{"a":2}', [(1, b'{"a":1},'), (2, b'{"a":2}')]),
        (b'{"cut": "her\n{"a":2}\n{"a":3}', [(1, b'{"cut": "her'), (2, b'{"a":2}'), (3, b'{"a":3}')]),
        (b'{"cut": [\n{"a":2}\n{"a":3}', [(1, b'{"cut": ['), (2, b'{"a":2}'), (3, b'{"a":3}')]),
        (b"  words \nmore", [(1, b"words "), (2, b"more")]),
        (b"[1, 2]\n3", [(1, b"[1, 2]"), (2, b"3")]),
        (b"\xff\xfe\x00\n\x00", [(1, b"\xff\xfe\x00"), (2, b"\x00")]),
    ],
)
def test_lines(content: bytes, expected: list[tuple[int, bytes]]) -> None:
    for piece in (0, 1, 3):
        assert framed(content, piece=piece) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", []),
        (b'{"a":1}', [(1, b'{"a":1}')]),
        (b'\xef\xbb\xbf[{"a":1},{"a":2}]', [(1, b'{"a":1}'), (1, b'{"a":2}')]),
        (b'[\n {\n "a": [1, {}]\n },\n {"a":2}\n]\n', [(2, b'{\n "a": [1, {}]\n }'), (5, b'{"a":2}')]),
        (b'{"a":1}\n{"a":2}', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
        (b'[1, "x, ]", null, [2, 3]]', [(1, b"1"), (1, b'"x, ]"'), (1, b"null"), (1, b"[2, 3]")]),
        (b'[{"a":1},\n{"cut": "her', [(1, b'{"a":1}'), (2, b'{"cut": "her')]),
        (b'[\n{"a":"her\n{"a":2},\n{"a":3}]', [(2, b'{"a":"her'), (3, b'{"a":2}'), (4, b'{"a":3}')]),
    ],
)
def test_documents(content: bytes, expected: list[tuple[int, bytes]]) -> None:
    for piece in (0, 1, 3):
        assert framed(content, document=True, piece=piece) == expected


JSON_OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(
    objects=st.lists(st.tuples(JSON_OBJECTS, st.sampled_from([None, 2]), st.booleans()), max_size=8),
    separator=st.sampled_from(["\n", "\r\n", " ", "", "\n\n"]),
    piece=st.integers(0, 7),
)
@settings(deadline=None, max_examples=200)
def test_objects_come_out_as_they_went_in(objects: list, separator: str, piece: int) -> None:
    """However objects are printed and separated, each is one frame, byte for byte."""
    texts = [json.dumps(value, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
             for value, indent, ascii_ in objects]  # fmt: skip
    content = separator.encode().join(texts)
    assert [line for _, line in framed(content, piece=piece)] == texts
    array = b"[" + b",".join(texts) + b"]"
    assert [line for _, line in framed(array, document=True, piece=piece)] == texts


PIECES = [b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b"\r\n", b" ", b",", b":", b'{"a":1}', b"x", b"\xff", b"\0", b"1"]


@example(content=b"{{} ", piece=9, document=False)  # was cut where the block was the last one
@given(content=st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join) | st.binary(max_size=60),
       piece=st.integers(1, 9), document=st.booleans())  # fmt: skip
@settings(deadline=None, max_examples=1500)
def test_any_bytes(content: bytes, piece: int, document: bool) -> None:
    """Nothing is dropped or moved, and pieces, block size and the fast path make no difference."""
    found = framed(content, document=document)
    assert framed(content, document=document, piece=piece) == found
    at = 0
    for number, frame in found:
        assert frame
        start = content.index(frame, at)
        while content.count(b"\n", 0, start) + 1 < number:  # the document's own bracket is none
            start = content.index(frame, start + 1)
        assert not content[at:start].strip(b" \t\r\n,[]\xef\xbb\xbf" if document else b" \t\r\n\xef\xbb\xbf")
        assert number == content.count(b"\n", 0, start) + 1
        at = start + len(frame)
    assert not content[at:].strip(b" \t\r\n,[]\xef\xbb\xbf" if document else b" \t\r\n\xef\xbb\xbf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing._Framer, "_frame_plain_lines", lambda *_: 0)
        patch.setattr(framing, "BLOCK", 4)
        assert framed(content, document=document) == found


EVENT = json.dumps({"event_id": "e", "properties": '{"screen":"a"}', "user_id": "x" * 50}).encode()


@pytest.mark.parametrize("document", [False, True])
@pytest.mark.parametrize(
    ("content", "least"),
    [
        (b"{" * 10_000_000, 1),
        (b"[" * 10_000_000, 1),
        (b'{"a":' * 2_000_000, 1),
        (b'{"a":\n' * 500_000, 500_000),
        (b'{"a":[1,1,1,1,1,1,\n' * 200_000, 200_000),
        (b'{"\n' * 500_000, 500_000),
        (b'{"a":"' + b"x" * 10_000_000 + b'"}', 1),
        (b'{"a":"' + b"\\" * 10_000_000, 1),
        (b'{"a":1}' * 500_000, 500_000),
        (b'{"a":"b",\n' + (EVENT + b"\n") * 100_000, 100_001),
        (b'{"a":[\n' + (EVENT + b"\n") * 100_000, 100_001),
        (b'{"a":[\n' + b"1,\n" * 500_000, 500_001),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_hostile_content_takes_linear_time(content: bytes, least: int, document: bool) -> None:
    began = time.monotonic()
    assert len(framed(content, document=document)) == least
    assert time.monotonic() - began < 30  # measured: at most 4 s; quadratic time would be hours


def test_a_line_longer_than_the_limit_is_cut_and_kept() -> None:
    content = b"x" * (MAX_FRAME + 5) + b"\n" + EVENT
    found = framed(content, piece=BLOCK // 3)
    assert [(number, len(line)) for number, line in found] == [(1, MAX_FRAME), (1, 5), (2, len(EVENT))]
    assert b"".join(line for _, line in found) == content.replace(b"\n", b"")


def test_an_array_larger_than_a_block_is_streamed() -> None:
    """Frames of the first block come out before the rest has been read."""
    read = 0

    def pieces():
        nonlocal read
        yield b"["
        for _ in range(60):
            read += 1
            yield b",".join([EVENT] * 8192) + b","
        yield EVENT + b"]"

    batches = frames(pieces(), document=True)
    first = next(batches)
    assert read * len(EVENT) * 8192 < BLOCK + 2 * len(EVENT) * 8192
    assert len(first.lines) + sum(len(batch.lines) for batch in batches) == 60 * 8192 + 1


def test_every_file_of_the_json_test_suite(shared_data: Path) -> None:
    paths = sorted((shared_data / "json_test_suite" / "test_parsing").glob("*.json"))
    assert len(paths) > 300
    for path in paths:
        content = path.read_bytes()
        for document in (False, True):
            found = framed(content, document=document)
            rest = content
            for _, frame in found:
                assert frame in rest, path.name
                rest = rest[rest.index(frame) + len(frame) :]
