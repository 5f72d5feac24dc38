"""From the text of a request to the values that a view takes, by the types of the view's own placeholders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property
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

_WHOLE = re.compile(r"[+-]?[0-9]{1,78}")  # 256 bits are 78 digits
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_BOOLEAN = re.compile(r"true|false|1|0", re.IGNORECASE)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8}")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?(Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)


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

    def split(self, text: str) -> list[str]:
        """The values in one text of a query string or form: an array may be comma separated."""
        return text.split(",") if self._is_array else [text]

    @property
    def takes(self) -> str:
        """What the parameter takes, in words."""
        return self._reader[1]

    def _one(self, text: str) -> Value:
        read, takes = self._reader
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
    def _reader(self) -> tuple[Callable[[str], Value], str]:
        return reader(self._core, self.name)


def reader(type_name: str, name: str) -> tuple[Callable[[str], Value], str]:
    """A function that reads the text of one value of a type, raising ValueError, and what it takes in words.

    Args:
        type_name: without Nullable, LowCardinality and Array.
        name: the parameter's: ``start_date`` and ``end_date`` say on which side an open bound lies.
    """
    if match := _INTEGER.fullmatch(type_name):
        bits = int(match[2])
        low, high = (0, 2**bits - 1) if match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return lambda text: _integer(text, low, high), f"a whole number from {low} to {high}"
    if type_name in ("Float32", "Float64"):
        return lambda text: float(_matched(_NUMBER, text)), "a number"
    if match := _DECIMAL.fullmatch(type_name):
        before, after = int(match[1]) - int(match[2]), int(match[2])
        pattern = re.compile(rf"[+-]?0*[0-9]{{1,{before}}}(\.[0-9]{{0,{after}}})?")
        takes = f"a number with at most {before} digits before and {after} after the point"
        return lambda text: Decimal(_matched(pattern, text)), takes
    if type_name == "Bool":
        return lambda text: _matched(_BOOLEAN, text).lower() in ("true", "1"), "true or false"
    if type_name == "Date":
        return _date, "a date as YYYY-MM-DD from 1970-01-01 to 2149-06-06"
    if match := _DATETIME.fullmatch(type_name):
        return _time_reader(name, match[2] or match[3], int(match[1] or 0))
    if type_name == "UUID":
        return lambda text: str(UUID(text)), "a UUID"
    # Other types are read by ClickHouse, which refuses what it cannot read.
    return _text, "text" if type_name == "String" else f"a value of the type {type_name}"


def _matched(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text


def _text(text: str) -> str:
    text.encode()  # a lone surrogate is no text that ClickHouse could hold
    return text


def _integer(text: str, low: int, high: int) -> int:
    value = int(_matched(_WHOLE, text))
    if not low <= value <= high:
        raise ValueError(text)
    return value


def _date(text: str) -> str:
    value = date.fromisoformat(_matched(_DAY, text))
    if not date(1970, 1, 1) <= value <= date(2149, 6, 6):
        raise ValueError(text)
    return value.isoformat()


def _time_reader(name: str, zone_name: str | None, precision: int) -> tuple[Callable[[str], str], str]:
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

    return read, takes
