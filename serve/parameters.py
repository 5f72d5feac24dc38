"""From the text of a request to the values that a view takes, by the types of the view's own placeholders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from serve.errors import ApiError

Value = str | int | float | bool | Decimal

# ClickHouse reads at most 128 KiB a value, in which escaping can double every byte.
MAX_VALUE_BYTES = 60_000

_WRAPPER = re.compile(r"(?:LowCardinality|Nullable|Array)\((.*)\)", re.DOTALL)
_INTEGER = re.compile(r"(U?)Int(8|16|32|64|128|256)")
_DECIMAL = re.compile(r"Decimal\((\d+),\s*(\d+)\)")
_DATETIME = re.compile(r"DateTime(?:64\((\d)(?:,\s*'([^']+)')?\)|\('([^']+)'\))?")

_WHOLE = re.compile(r"([+-]?[0-9]{1,78})(\.0+)?")  # 256 bits are 78 digits; to JSON, 1.0 is a whole number
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_BOOLEAN = re.compile(r"true|false|1|0", re.IGNORECASE)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8}")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?(Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)
# The days there are in a DateTime, leap years and all, for clients that check before they send.
_DAY_PATTERN = (
    r"(19[7-9]\d|20\d\d|210[0-5])-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|"
    r"02-(0[1-9]|1\d|2[0-8]))|(19(7[26]|8[048]|9[26])|20([02468][048]|[13579][26])|2104)-02-29"
)
_TIME_PATTERN = (
    rf"^(({_DAY_PATTERN})([ T]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{{1,9}})?)?"
    r"(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?)?)?$"
)


class Reader(NamedTuple):
    """How the values of a type are read.

    Attributes:
        read: from text to the value; raises ValueError.
        takes: what it takes, in words.
        schema: what it takes, as JSON Schema.
    """

    read: Callable[[str], Value]
    takes: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One placeholder of a view.

    Attributes:
        type: as ClickHouse writes it, for example ``Nullable(DateTime('UTC'))``.
    """

    name: str
    type: str
    description: str = ""
    example: str = ""

    @property
    def required(self) -> bool:
        """Whether a request without it is refused: it can be neither NULL nor an empty array."""
        return "Nullable(" not in self.type and not self._is_array

    def bind(self, texts: Sequence[str]) -> Value | list[Value] | None:
        """The value to bind for what the request gave; absent or empty is not given.

        Raises:
            ApiError: 400 naming the parameter, what it got and what it takes.
        """
        given = [text for text in texts if text]
        if self._is_array:
            return [self._one(text) for text in given]
        if len(set(given)) > 1:
            raise self._refusal(
                f"was given {len(set(given))} different values; it takes one, {self.takes}", "ambiguous"
            )
        if given:
            return self._one(given[0])
        if self.required:
            raise self._refusal(f"is required; it takes {self.takes}", "required")
        return None

    def split(self, item: Any) -> list[str]:
        """The values in what the request gave once: a text, in which commas part an array's, or a value of JSON.

        Raises:
            ApiError: 400, a list where one value is taken, or something nested.
        """
        items = item.split(",") if self._is_array and isinstance(item, str) else item
        items = items if self._is_array and isinstance(items, list) else [items]
        if any(isinstance(it, (dict, list)) for it in items):
            raise self._refusal(f"is nested; it takes {self.takes}", "invalid")
        return ["" if it is None else str(it) for it in items]

    @property
    def takes(self) -> str:
        """What the parameter takes, in words."""
        return self._reader.takes

    @property
    def schema(self) -> dict[str, Any]:
        """What the parameter takes, as JSON Schema."""
        return {"type": "array", "items": self._reader.schema} if self._is_array else self._reader.schema

    def _one(self, text: str) -> Value:
        read, takes, _ = self._reader
        try:
            if len(text.encode()) > MAX_VALUE_BYTES:
                raise self._refusal(f"is longer than {MAX_VALUE_BYTES} bytes", "invalid")
            return read(text)
        except (ValueError, OverflowError) as error:
            shown = ascii(text) if isinstance(error, UnicodeEncodeError) else repr(text)
            raise self._refusal(f"is {shown[:100]}; it takes {takes}", "invalid") from None

    def _refusal(self, text: str, code: str) -> ApiError:
        return ApiError(400, f"parameter_{code}", f"Parameter {self.name} {text}.", parameter=self.name)

    @cached_property
    def _core(self) -> str:
        core = self.type
        while match := _WRAPPER.fullmatch(core):
            core = match[1]
        return core

    @property
    def _is_array(self) -> bool:
        return "Array(" in self.type

    @cached_property
    def _reader(self) -> Reader:
        return reader(self._core, self.name)


def reader(type_name: str, name: str) -> Reader:
    """How one value of a type is read.

    Args:
        type_name: without Nullable, LowCardinality and Array.
        name: the parameter's: ``start_date`` and ``end_date`` say on which side an open bound lies.
    """
    if match := _INTEGER.fullmatch(type_name):
        bits = int(match[2])
        low, high = (0, 2**bits - 1) if match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        schema = {"type": "integer", "minimum": low, "maximum": high}
        return Reader(lambda text: _integer(text, low, high), f"a whole number from {low} to {high}", schema)
    if type_name in ("Float32", "Float64"):
        return Reader(lambda text: float(_matched(_NUMBER, text)), "a number", {"type": "number"})
    if match := _DECIMAL.fullmatch(type_name):
        before, after = int(match[1]) - int(match[2]), int(match[2])
        pattern = re.compile(rf"[+-]?0*[0-9]{{1,{before}}}(\.[0-9]{{0,{after}}})?")
        takes = f"a number with at most {before} digits before and {after} after the point"
        schema = {"type": "string", "pattern": f"^({pattern.pattern})?$"}
        return Reader(lambda text: Decimal(_matched(pattern, text)), takes, schema)
    if type_name == "Bool":
        return Reader(
            lambda text: _matched(_BOOLEAN, text).lower() in ("true", "1"), "true or false", {"type": "boolean"}
        )
    if type_name == "Date":
        takes = "a date as YYYY-MM-DD from 1970-01-01 to 2149-06-06"
        return Reader(_date, takes, {"type": "string", "pattern": f"^({_DAY_PATTERN})?$"})
    if match := _DATETIME.fullmatch(type_name):
        return _time_reader(name, match[2] or match[3], int(match[1] or 0))
    if type_name == "UUID":
        return Reader(lambda text: str(UUID(text)), "a UUID", {"type": "string", "format": "uuid"})
    # Other types are read by ClickHouse, which refuses what it cannot read.
    return Reader(_text, "text" if type_name == "String" else f"a value of the type {type_name}", {"type": "string"})


def _matched(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text


def _text(text: str) -> str:
    text.encode()  # a lone surrogate is no text that ClickHouse could hold
    return text


def _integer(text: str, low: int, high: int) -> int:
    value = int(_matched(_WHOLE, text).partition(".")[0])
    if not low <= value <= high:
        raise ValueError(text)
    return value


def _date(text: str) -> str:
    value = date.fromisoformat(_matched(_DAY, text))
    if not date(1970, 1, 1) <= value <= date(2149, 6, 6):
        raise ValueError(text)
    return value.isoformat()


def _time_reader(name: str, zone_name: str | None, precision: int) -> Reader:
    zone = ZoneInfo(zone_name) if zone_name and zone_name != "UTC" else UTC
    # DateTime holds 32 bits of seconds; DateTime64 holds these years in whatever precision but nanoseconds.
    first = datetime(1900, 1, 1, tzinfo=UTC) if precision else datetime(1970, 1, 1, tzinfo=UTC)
    last = datetime(2261, 12, 31, 23, 59, 59, tzinfo=UTC) if precision else datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)
    takes = (
        f"a time as YYYY-MM-DD HH:MM:SS ({zone_name or 'UTC'}), ISO 8601 with T, Z or an offset (its + sent as %2B), "
        f"or YYYY-MM-DD, from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    )

    def read(text: str) -> str:
        match = _TIME.fullmatch(text)
        if not match:
            raise ValueError(text)
        day, clock, fraction, offset = match.groups()
        is_last_of_day = clock is None and name == "end_date"
        if clock is None:
            clock = "23:59:59" if is_last_of_day else "00:00:00"
        time = datetime.fromisoformat(f"{day}T{clock}{offset or ''}".upper())
        try:
            time = (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
        except OverflowError:  # an offset at the ends of the calendar
            time = time.replace(tzinfo=UTC)
        # A bound beyond what the type holds on its open side bounds nothing, so the nearest time gives the same answer.
        # On the other side no time does: it is refused.
        if name == "start_date":
            time = max(time, first)
        elif name == "end_date":
            time = min(time, last)
        if not first <= time <= last:
            raise ValueError(text)
        # Cut to the precision, not rounded: events were cut as well when they were stored.
        digits = ((fraction or "") + ("9" if is_last_of_day else "0") * precision)[:precision]
        return f"{time.astimezone(zone):%Y-%m-%d %H:%M:%S}" + (f".{digits}" if precision else "")

    return Reader(read, takes, {"type": "string", "pattern": _TIME_PATTERN})
