"""From a request's text to the value of a view's placeholder."""

from __future__ import annotations

from decimal import Decimal

import pytest

from serve.errors import ApiError
from serve.parameters import Parameter, Value

TIME = "Nullable(DateTime('UTC'))"


@pytest.mark.parametrize(
    ("name", "type_name", "text", "value"),
    [
        ("start_date", TIME, "2023-01-01 00:00:00", "2023-01-01 00:00:00"),
        ("start_date", TIME, "2023-01-01T00:00:00", "2023-01-01 00:00:00"),
        ("start_date", TIME, "2026-11-23T04:44:30.711Z", "2026-11-23 04:44:30"),
        ("start_date", TIME, "2023-01-01t01:00:00z", "2023-01-01 01:00:00"),
        ("start_date", TIME, "2023-01-01T00:00:00+05:30", "2022-12-31 18:30:00"),
        ("start_date", TIME, "2023-01-01 00:00:00-0030", "2023-01-01 00:30:00"),
        ("start_date", TIME, "2023-01-01T00:00", "2023-01-01 00:00:00"),
        ("start_date", TIME, "2023-01-01", "2023-01-01 00:00:00"),
        ("end_date", TIME, "2023-01-01", "2023-01-01 23:59:59"),
        ("start_date", TIME, "1900-01-01", "1970-01-01 00:00:00"),
        ("start_date", TIME, "0001-01-01T00:00:00+01:00", "1970-01-01 00:00:00"),
        ("end_date", TIME, "9999-12-31T23:59:59-01:00", "2106-02-07 06:28:15"),
        ("end_date", "DateTime64(3, 'UTC')", "2023-01-01", "2023-01-01 23:59:59.999"),
        ("at", "DateTime64(3,'UTC')", "2023-01-01 00:00:00.12", "2023-01-01 00:00:00.120"),
        ("at", "DateTime64(6)", "2023-01-01T00:00:00.1234567Z", "2023-01-01 00:00:00.123456"),
        ("at", "DateTime('Europe/Paris')", "2023-07-01 00:00:00", "2023-07-01 00:00:00"),
        ("at", "DateTime('Europe/Paris')", "2023-07-01T00:00:00Z", "2023-07-01 02:00:00"),
        ("d", "Date", "2023-01-31", "2023-01-31"),
        ("d", "Date", "20230131", "2023-01-31"),
        ("n", "UInt64", "18446744073709551615", 2**64 - 1),
        ("n", "LowCardinality(Nullable(Int8))", "-128", -128),
        ("f", "Float64", "-1.5e3", -1500.0),
        ("m", "Decimal(10, 2)", "-12345678.90", Decimal("-12345678.90")),
        ("b", "Nullable(Bool)", "True", True),
        ("b", "Nullable(Bool)", "0", False),
        ("u", "UUID", "61F0C404-5CB3-11E7-907B-A6006AD3DBA0", "61f0c404-5cb3-11e7-907b-a6006ad3dba0"),
        ("s", "LowCardinality(Nullable(String))", "\\N", "\\N"),
    ],
)
def test_a_value_is_read_by_its_type(name: str, type_name: str, text: str, value: Value) -> None:
    assert Parameter(name, type_name).bind([text]) == value


@pytest.mark.parametrize(
    ("name", "type_name", "text"),
    [
        ("start_date", TIME, "2023-02-30"),
        ("start_date", TIME, "2023-01-01T25:00:00"),
        ("start_date", TIME, "2023-01-01T00:00:00 02:00"),
        ("start_date", TIME, "yesterday"),
        ("start_date", TIME, "2023-01-01 00:00:00'"),
        ("start_date", TIME, "\uff12023-01-01"),
        # No event lies beyond these: the nearest time that the type holds would let some through.
        ("start_date", TIME, "2106-02-07 06:28:16"),
        ("end_date", TIME, "1969-12-31"),
        ("at", TIME, "1969-12-31"),
        ("at", TIME, "2200-01-01"),
        ("d", "Date", "2023-13-01"),
        ("d", "Date", "1969-12-31"),
        ("n", "UInt64", "18446744073709551616"),
        ("n", "UInt64", "-1"),
        ("n", "Int8", "128"),
        ("n", "Int64", "1_000"),
        ("n", "Int64", " 1"),
        ("n", "Int64", "1.5"),
        ("n", "Int64", "9" * 5000),
        ("f", "Float64", "nan"),
        ("f", "Float64", "1,5"),
        ("m", "Decimal(10, 2)", "1.234"),
        ("m", "Decimal(10, 2)", "123456789"),
        ("b", "Bool", "yes"),
        ("u", "UUID", "not-a-uuid"),
        ("s", "String", "\ud800"),
        ("s", "String", "x" * 60_001),
    ],
)
def test_what_does_not_fit_the_type_is_refused_by_name(name: str, type_name: str, text: str) -> None:
    with pytest.raises(ApiError) as refusal:
        Parameter(name, type_name).bind([text])
    assert (refusal.value.status, refusal.value.parameter) == (400, name)
    assert name in refusal.value.error


def test_absent_and_empty_are_not_given() -> None:
    assert Parameter("p", "Nullable(String)").bind([]) is None
    assert Parameter("p", "Nullable(String)").bind([""]) is None
    assert Parameter("p", "Array(String)").bind([]) == []
    with pytest.raises(ApiError, match="required"):
        Parameter("p", "UInt8").bind([""])


def test_given_twice() -> None:
    assert Parameter("p", "Nullable(String)").bind(["a", "a", ""]) == "a"
    with pytest.raises(ApiError, match="2 different values"):
        Parameter("p", "Nullable(String)").bind(["a", "b"])
    assert Parameter("p", "Array(UInt8)").bind(["1", "2"]) == [1, 2]
    with pytest.raises(ApiError):
        Parameter("p", "Array(UInt8)").bind(["1", "x"])
