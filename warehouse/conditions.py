"""Conditions over the columns of an event, as people write them in SQL: checked before they reach a statement."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.connection import refusal
from warehouse.schema import checked
from warehouse.settings import Settings

COLUMNS = {
    "event_id": "String",
    "user_id": "String",
    "event_type": "String",
    "event_time": "DateTime('UTC')",
    "app_version": "String",
    "device_type": "String",
    "os_version": "String",
    "country": "String",
    "properties": "String",
    "session_id": "String",
}
# Those of app_events_quarantine.
QUARANTINE_COLUMNS = dict.fromkeys(COLUMNS, "String") | {
    "c__error_column": "Array(String)",
    "c__error": "Array(String)",
    "c__import_id": "String",
    "insertion_date": "DateTime('UTC')",
    "line_number": "UInt64",
    "raw": "String",
    "source": "String",
}
# Nothing that reads, waits, differs from row to row by chance, or depends on the time or the server: a condition runs
# with the project's own rights, and a mutation must mean the same on every replica.
FUNCTIONS = frozenset(
    """
    and or not xor equals notequals less greater lessorequals greaterorequals in notin like notlike ilike
    notilike match isnull isnotnull ifnull coalesce nullif assumenotnull if multiif between lower upper
    lowerutf8 upperutf8 trim trimboth trimleft trimright ltrim rtrim length lengthutf8 empty notempty reverse
    substring substr mid substringutf8 left right concat startswith endswith position positioncaseinsensitive
    locate replaceone replaceall replaceregexpone replaceregexpall extract splitbychar splitbystring hastoken
    has hasany hasall array tuple arrayelement tupleelement plus minus multiply divide intdiv modulo abs round
    floor ceil negate least greatest cast tostring todate todate32 todatetime todatetime64
    parsedatetimebesteffort parsedatetimebesteffortornull toint8 toint16 toint32 toint64 touint8 touint16
    touint32 touint64 tofloat32 tofloat64 toint32ornull toint64ornull touint32ornull touint64ornull
    tofloat64ornull toint64orzero touint64orzero toyear toquarter tomonth todayofmonth todayofweek tohour
    tominute tosecond toyyyymm toyyyymmdd tounixtimestamp tostartofyear tostartofquarter tostartofmonth
    tostartofweek tomonday tostartofday tostartofhour tostartofminute tointervalsecond tointervalminute
    tointervalhour tointervalday tointervalweek tointervalmonth tointervalyear adddays addhours addminutes
    addseconds addmonths addweeks addyears subtractdays subtracthours subtractminutes subtractseconds
    subtractmonths subtractweeks subtractyears jsonhas jsonlength jsontype jsonextract jsonextractstring
    jsonextractint jsonextractuint jsonextractfloat jsonextractbool jsonextractraw isvalidjson
    simplejsonextractstring simplejsonhas cityhash64 siphash64 crc32 md5 hex unhex
    """.split()  # noqa: SIM905 - a hundred quoted names are harder to read
)
# The statement about a file's lines has it once, and its texts three times more; ClickHouse takes 128 KiB.
MAX_CHARACTERS = 25_000
_NODE = re.compile(r" *(?P<kind>Function|Identifier|Literal|ExpressionList)\b ?(?P<name>.*)")
_CHILDREN = re.compile(r" \(children \d+\)$")
_ALIAS = re.compile(r" \(alias (.*)\)$")
_TEXT = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}
# What `select (…)` parses to when the brackets hold one expression and nothing escapes from them.
_SELECT = ["SelectWithUnionQuery (children 1)", "ExpressionList (children 1)", "SelectQuery (children 1)"]
_SELECT.append("ExpressionList (children 1)")


class ConditionError(Exception):
    """A condition that cannot be used; the message says why in one sentence."""


class Condition:
    """A condition over the columns of one row that was found harmless.

    Args:
        client: any login; nothing is read.
        text: SQL, for example ``user_id = 'u1' and event_time < '2025-01-01'``.
        columns: the names and types that it may use.

    Attributes:
        sql: the condition in brackets.
        texts: the texts that it names.

    Raises:
        ConditionError: it is no condition over these columns alone.
        clickhouse_connect.driver.exceptions.OperationalError: ClickHouse does not answer.
    """

    def __init__(self, client: Client, text: str, columns: Mapping[str, str] = COLUMNS) -> None:
        if not text.strip():
            raise ConditionError("The condition is empty; write for example user_id = 'u1'.")
        if len(text) > MAX_CHARACTERS:
            raise ConditionError(f"The condition has {len(text):,} characters; it takes at most {MAX_CHARACTERS:,}.")
        # A line of its own, so that a comment at its end cannot swallow the bracket.
        self.sql = f"(\n{text}\n)"
        self._columns = columns
        empty = (f"materialize(defaultValueOfTypeName({_quoted(kind)})) as {name}" for name, kind in columns.items())
        self._empty_row = f"(select {', '.join(empty)})"
        nodes = self._nodes(client)
        if nodes[:4] != _SELECT:
            raise ConditionError("The condition is not one expression; join several with `and` or `or`.")
        self.texts: list[str] = []
        for node in nodes[4:]:
            self._check(node)
        self._check_type(client)
        self._holds_for_nothing = self._holds_for_an_empty_row(client)

    def _nodes(self, client: Client) -> list[str]:
        try:
            # Parsed only: functions of constants run as soon as a query is analysed.
            # First without the brackets: what closes them itself, `1) or (1`, would reach beyond them in a statement.
            client.raw_query(f"explain ast select {self.sql[1:-1]}")
            parsed = client.raw_query(f"explain ast select {self.sql}").decode("utf-8", "replace")
        except ClickHouseError as error:
            if getattr(error, "code", None) is None:
                raise
            raise ConditionError(f"The condition is no SQL that can be read: {_near(error)}") from error
        return [line.strip() for line in parsed.splitlines()]

    def _check(self, node: str) -> None:
        # The answer is tab-separated text, in which quotes and backslashes are escaped.
        found = _NODE.fullmatch(_ESCAPED.sub(_unescaped, node))
        kind, name = (found["kind"], _CHILDREN.sub("", found["name"])) if found else ("", "")
        if kind == "Literal":
            self.texts += [_ESCAPED.sub(_unescaped, text) for text in _TEXT.findall(name)]
        elif kind in ("Function", "Identifier") and (alias := _ALIAS.search(name)):
            raise ConditionError(f"The condition names a part of itself {alias[1]}; leave out the `as`.")
        elif kind == "Function" and name.lower() not in FUNCTIONS:
            raise ConditionError(f"The condition uses {name}, which it may not; it takes plain functions of one event.")
        elif kind == "Identifier" and name not in self._columns:
            raise ConditionError(f"The condition names {name}; the columns are {', '.join(self._columns)}.")
        elif not kind:
            what = "a subquery" if node.startswith("Subquery") else "something else than columns, values and functions"
            raise ConditionError(f"The condition holds {what}; it is about one event at a time.")

    def _check_type(self, client: Client) -> None:
        try:
            described = client.query(f"describe table (select {self.sql} as condition from {self._empty_row})")
        except ClickHouseError as error:
            if getattr(error, "code", None) is None:
                raise
            raise ConditionError(f"ClickHouse does not take the condition: {refusal(error)}.") from error
        kind = described.result_rows[0][1]
        if re.sub(r"Nullable\(|LowCardinality\(|\)", "", kind) not in ("Bool", "UInt8"):
            raise ConditionError(f"The condition is of type {kind}; it has to be true or false for each event.")

    def _holds_for_an_empty_row(self, client: Client) -> bool:
        try:
            return bool(client.query(f"select {self.sql} from {self._empty_row}").result_rows[0][0])
        except ClickHouseError as error:
            if getattr(error, "code", None) is None:
                raise
            return True

    def lines(self, settings: Settings, lines: str) -> str:
        """A query for the lines that the condition is about: import_id, line_number and raw, some perhaps repeatedly.

        Of a valid event and of a rejected one that can be read, it is about the columns; an ``event_time`` that is no
        time is null. Where a column of a rejected line cannot be read (all of them when the line holds no event or an
        array, one when it holds an object), it is about the text: the line counts when the condition becomes true by
        one of the texts that it names and the line holds as a word.

        Args:
            lines: a table or subquery with the columns of ``landing``.
        """
        words = {form: text for text in self.texts if text for form in _forms(text)}
        longest_first = sorted(words, key=len, reverse=True)
        pattern = _quoted("|".join(map(_as_word, longest_first))) if words else "'^\\\\b$'"
        forms = ", ".join(map(_quoted, words)) or "''"
        texts = ", ".join(map(_quoted, words.values())) or "''"
        text_columns = [name for name, kind in COLUMNS.items() if kind == "String"]
        columns = ",\n            ".join(
            f"multiIf(guess.1 = '{name}', guess.2, is_unreadable, '', event.{name}) as {name}"
            if name in text_columns
            else f"if(is_unreadable, null, event_time_utc) as {name}"
            for name in COLUMNS
        )
        unreadable = "[]" if self._holds_for_nothing else f"{text_columns}"
        return f"""
    select
        import_id,
        line_number,
        raw
    from
    (
        select
            import_id,
            line_number,
            raw,
            {columns}
        from
        (
            select
                *,
                -- Of an array the check takes the elements for the columns, in their order.
                match(line, '^\\\\s*\\\\[')
                or arrayAll(text -> text = '', [{", ".join(f"event.{name}" for name in COLUMNS)}]) as is_unreadable,
                if(is_unreadable, {unreadable}, nested_columns) as unread_columns,
                if(
                    is_valid,
                    [('', '')],
                    arrayConcat(
                        if(is_unreadable, [], [('', '')]),
                        arrayFlatten(
                            arrayMap(
                                name -> arrayMap(
                                    form -> (name, transform(form, [{forms}], [{texts}], form)),
                                    arrayDistinct(extractAll(if(raw = '', line, raw), {pattern}))
                                ),
                                unread_columns
                            )
                        )
                    )
                ) as guesses
            from ({checked(settings, lines)})
        )
        array join guesses as guess
    )
    where {self.sql}
"""


def _near(error: Exception) -> str:
    """Where the parser stopped, without the statement that surrounds the condition."""
    found = re.search(r"failed at position \d+ \((.*?)\)", str(error), re.DOTALL)
    return f"it breaks off at {found[1]!r}." if found else f"{refusal(error)}."


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[1], found[1])


def _forms(text: str) -> Iterator[str]:
    """How JSON writes a text, after the text itself."""
    yield text
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]


def _as_word(text: str) -> str:
    """A pattern that finds the text where it is no part of a longer word."""
    before, after = (r"\b" if re.match(r"[0-9A-Za-z_]", end) else "" for end in (text[0], text[-1]))
    return f"{before}{re.escape(text)}{after}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
