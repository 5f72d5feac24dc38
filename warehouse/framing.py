"""From bytes to lines: where each event of an HTTP body or a file begins and ends.

Framing finds where a value ends and judges nothing else: what is no valid event is told apart in SQL, once. So no input
raises, and every byte that is not white space (or the brackets and commas of a document's outer array) is in exactly
one frame. A frame is

- one JSON object, on one line or over many, several on a line or one (in a document: one element of the array), or
- where no object can be framed, one line as it came, from its first character that is not blank.

The time taken is linear in the size of the input, whatever it holds, and the memory is bounded by ``MAX_FRAME``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

# A request of 10 MB is one block, so most bodies are framed by a few calls into C.
BLOCK = 16 * 1024 * 1024
# A longer line is cut, a longer object is taken line by line: memory stays bounded.
MAX_FRAME = 2 * BLOCK

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK = re.compile(rb"[ \t\r\n]*+")
BETWEEN_ELEMENTS = re.compile(rb"[ \t\r\n,\]]*+")
BLANK_IN_LINE = re.compile(rb"[ \t\r]*+")
# Two objects on one line; also matches inside a text, which costs time only.
SEVERAL_ON_A_LINE = re.compile(rb"\}[ \t\r]*+\{")
# Group 1 is empty when the text is not closed on its line.
TEXT = rb'"(?:[^"\\\n]++|\\[^\n])*+("?)'
TOKEN = re.compile(TEXT + rb'|[{}\[\]:,\n]|[^"{}\[\]:,\s]++')
# An array's element that is neither object nor array.
SCALAR = re.compile(rb'(?:"(?:[^"\\\n]++|\\[^\n])*+"|[^"{}\[\],\n]++)++')

_OBJECT, _ARRAY, _OBJECT_END, _ARRAY_END, _NEWLINE = b"{[}]\n"
_COLON, _COMMA = b":,"


class Frames(NamedTuple):
    """A run of frames in the order in which they came.

    Attributes:
        lines: each frame's bytes: an event as JSON text, or whatever came in its place.
        numbers: the line at which each frame starts, from 1.
        raws: each frame as it came where that is not JSON (CSV), else empty.
    """

    lines: Sequence[bytes]
    numbers: Sequence[int]
    raws: Sequence[bytes] | None = None


def frames(chunks: Iterable[bytes], *, document: bool = False) -> Iterator[Frames]:
    """Split content into frames; the same content gives the same runs of frames however it is cut into chunks.

    Args:
        chunks: the content, decompressed, in pieces of any size.
        document: the content is one JSON document, an object or an array of objects, instead of NDJSON.
    """
    framer = _Framer(document)
    content = _Content(chunks)
    block = content.read(BLOCK).removeprefix(BYTE_ORDER_MARK)
    while block or not content.ended:
        consumed = framer.frame(block, content.ended)
        if framer.lines:
            yield framer.take()
        rest = block[consumed:]
        # Doubling keeps the time linear when one value needs several blocks.
        wanted = min(max(BLOCK, 2 * len(rest)), MAX_FRAME)
        block = rest + content.read(wanted - len(rest))


class _Content:
    """Chunks of any size, read as pieces of the size that is asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.ahead = b""
        self.ended = False

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only when the content has ended."""
        pieces = []
        while size and not self.ended:
            if not self.ahead:
                self.ahead = next(self.chunks, b"")
                self.ended = not self.ahead
            piece = self.ahead if len(self.ahead) <= size else self.ahead[:size]
            self.ahead = self.ahead[len(piece) :]
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


class _Framer:
    """The place in the content, and the frames found since they were last taken."""

    def __init__(self, document: bool) -> None:
        self.document = document
        self.in_array = False  # past the first bracket of a document
        self.line_number = 1
        self.lines: list[bytes] = []
        self.numbers: Sequence[int] = []

    def take(self) -> Frames:
        found = Frames(self.lines, self.numbers)
        self.lines, self.numbers = [], []
        return found

    def frame(self, block: bytes, last: bool) -> int:
        """Frame what can be framed, knowing what follows the block only when it is the last; bytes consumed."""
        if not self.document:
            consumed = self._frame_plain_lines(block, last)
            if consumed:
                return consumed
        return _Block(self, block, last).frame()

    def _frame_plain_lines(self, block: bytes, last: bool) -> int:
        """Frame a block of which every line is one object, as nearly every NDJSON block is; 0 when it is not.

        A line that opens with a brace, ends with one and has no two objects on it is one frame when the next line
        opens with a brace too: inside a value a closing brace is never followed by an opening one.
        """
        if last:
            end = len(block.rstrip(b"\n"))
            end -= end < len(block) and block[end - 1] == 13
        else:
            # The last whole line may go on in the next block, so it waits for that.
            end = block.rfind(b"\n", 0, max(block.rfind(b"\n"), 0))
            if end <= 0 or block[end + 1] != _OBJECT:
                return 0
            end -= block[end - 1] == 13
        if end <= 0 or block[0] != _OBJECT or block[end - 1] != _OBJECT_END:
            return 0
        newlines = block.count(b"\n", 0, end)
        if newlines == block.count(b"}\n{", 0, end):
            separator = b"\n"
        elif newlines == block.count(b"}\r\n{", 0, end):
            separator = b"\r\n"
        else:
            return 0
        if SEVERAL_ON_A_LINE.search(block, 0, end):
            return 0
        self.lines = block[:end].split(separator)
        self.numbers = range(self.line_number, self.line_number + newlines + 1)
        self.line_number += newlines + 1
        return len(block) if last else end + len(separator)


class _Open(NamedTuple):
    """A value that is not closed before the block ends: more of the content is needed to tell."""


class _Broken(NamedTuple):
    """A value that is nowhere closed.

    Attributes:
        until: where that became certain; whatever was open there is nowhere closed either.
        ends: for each value closed before that which stands first on its line, its start and end.
    """

    until: int
    ends: dict[int, int]


class _Block:
    """One block framed value by value, for content that is not plainly one object a line."""

    def __init__(self, framer: _Framer, block: bytes, last: bool) -> None:
        self.framer = framer
        self.block = block
        self.last = last
        self.broken = _Broken(0, {})
        self.holds_several = bool(SEVERAL_ON_A_LINE.search(block))
        self.newline = -1
        self.attempts = 16  # each one that fails costs a pass over the block: the error counts its lines
        # The same offsets as the bytes have; json's scanner, in C, then finds the ends of well-formed values.
        self.text = block.decode("latin-1") if len(block) <= BLOCK else ""

    def frame(self) -> int:
        block, framer, size = self.block, self.framer, len(self.block)
        numbers: list[int] = []
        framer.numbers = numbers
        position = 0
        while position < size:
            between = (BETWEEN_ELEMENTS if framer.in_array else BLANK).match(block, position)
            assert between is not None  # noqa: S101 - it matches the empty string
            start = between.end()
            framer.line_number += block.count(b"\n", position, start)
            if start == size:
                return size
            if framer.document and not framer.in_array:
                framer.in_array = True
                position = start + (block[start] == _ARRAY)
                continue
            # Only the first frame of a block is known to have all the room there is.
            final = self.last or (start == 0 and size >= MAX_FRAME)
            end = self._end_of_frame(start, final)
            if end is None:
                return start
            framer.lines.append(block[start:end])
            numbers.append(framer.line_number)
            framer.line_number += block.count(b"\n", start, end)
            position = end
        return size

    def _end_of_frame(self, start: int, final: bool) -> int | None:
        """Where the frame at ``start`` ends; None when more of the content is needed to tell."""
        block, document = self.block, self.framer.document
        newline = self._end_of_line(start)
        if (
            not document
            and block[newline - 1] == _OBJECT_END
            and block[start] == _OBJECT
            and block[newline + 1 : newline + 2] == b"{"
            and not (self.holds_several and SEVERAL_ON_A_LINE.search(block, start, newline))
        ):
            return newline  # plainly one object, see _frame_plain_lines
        if block[start] == _OBJECT or (document and block[start] == _ARRAY):
            end = self._end_of_value(start, final)
            if isinstance(end, _Open):
                return None
            if isinstance(end, int):
                if document:
                    return end
                after = BLANK_IN_LINE.match(block, end)
                assert after is not None  # noqa: S101 - it matches the empty string
                if after.end() == len(block):
                    return end if final else None
                if block[after.end()] in b"\n{":
                    return end
                newline = self._end_of_line(end)  # something else follows: the line stays together, as it came
        elif document:
            scalar = SCALAR.match(block, start)
            if scalar and scalar.end() == len(block) and not final:
                return None
            if scalar and (scalar.end() == len(block) or block[scalar.end()] in b",]\n"):
                return start + len(scalar.group().rstrip(b" \t\r"))
        if newline == len(block):
            return newline if final else None
        return newline - (block[newline - 1] == 13)

    def _end_of_line(self, position: int) -> int:
        if self.newline < position:
            self.newline = self.block.find(b"\n", position)
            if self.newline < 0:
                self.newline = len(self.block)
        return self.newline

    def _end_of_value(self, start: int, final: bool) -> int | _Open | None:
        """Where the object or array at ``start`` ends; None when it is nowhere closed."""
        if start < self.broken.until:
            return self.broken.ends.get(start)
        if self.text and self.attempts:
            try:
                return decode(self.text, start)[1]
            except (ValueError, RecursionError):
                # Not closed in this block, not well-formed, or nested deeper than json's scanner goes.
                self.attempts -= 1
        end = scan(self.block, start, final)
        if isinstance(end, _Broken):
            self.broken = end
            return None
        return end


# Numbers are not converted: only where they end matters.
decode = json.JSONDecoder(parse_float=len, parse_int=len).raw_decode


def scan(block: bytes, start: int, final: bool) -> int | _Open | _Broken:
    """Where the object or array at ``start`` ends, by its brackets and texts alone, whatever else it holds.

    An opening bracket where no value can stand, a closing one that does not match, and a text that is not closed on
    its line break the value: in NDJSON the lines after a cut one are then found at once.
    """
    kinds = bytearray()
    starts: list[int] = []  # -1 for a value that does not stand first on its line
    ends: dict[int, int] = {}
    previous = 0
    first_on_line = True
    for token in TOKEN.finditer(block, start):
        kind = block[token.start()]
        if kind == _NEWLINE:
            first_on_line = True
            continue
        if kind in b"{[":
            if kinds and not (previous == _COLON if kinds[-1] == _OBJECT else previous in b"[,"):
                return _Broken(token.start(), ends)
            kinds.append(kind)
            starts.append(token.start() if first_on_line else -1)
        elif kind in b"}]":
            if kinds.pop() != (_OBJECT if kind == _OBJECT_END else _ARRAY):
                return _Broken(token.end(), ends)
            opened = starts.pop()
            if not kinds:
                return token.end()
            if opened >= 0:
                ends[opened] = token.end()
        elif kind == 34 and not token.group(1):
            if token.end() >= len(block) - 1 and not final:  # the last byte may be a backslash
                return _Open()
            return _Broken(token.end(), ends)
        previous = kind
        first_on_line = False
    return _Broken(len(block), ends) if final else _Open()
