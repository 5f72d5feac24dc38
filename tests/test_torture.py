"""The worst text that others have collected, and what a machine makes up: nothing disappears or changes, no 5xx."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from conftest import Dbt
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from serve.app import create_app
from warehouse.connection import admin_token
from warehouse.framing import frames
from warehouse.landing import content_id, import_result, ingest
from warehouse.settings import Settings

TEXT_COLUMNS = ("event_id", "user_id", "event_type", "app_version", "device_type", "os_version", "country",
                "properties", "session_id")  # fmt: skip
ADDRESS = "/v0/events?name=app_events"
FUZZ = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def web(settings: Settings) -> FlaskClient:
    """The API; every request carries the token."""
    client = create_app(settings).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {admin_token(settings)}"
    return client


@pytest.fixture(scope="module")
def endpoints(dbt: Dbt) -> None:
    """The endpoints are in place."""
    dbt("build", "--exclude-resource-type", "unit_test", "test")


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a landing folder of the test's own."""
    return replace(settings, landing_url=str(tmp_path))


def suite(shared_data: Path) -> dict[str, bytes]:
    """Every file of the JSON test suite by its path."""
    root = shared_data / "json_test_suite"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("test_*/*.json"))}


def naughty(shared_data: Path) -> list[str]:
    return [text for text in json.loads((shared_data / "naughty_strings" / "blns.json").read_text()) if text]


def sent(content: bytes, *, document: bool) -> int:
    """Lines that some content is, by the contract of framing."""
    return sum(len(found.lines) for found in frames([content], document=document))


def event(**columns: object) -> dict[str, object]:
    return {"event_id": uuid.uuid4().hex, "event_type": "torture", "event_time": "2025-05-11 22:01:58"} | columns


def test_the_json_test_suite_over_http(web: FlaskClient, shared_data: Path) -> None:
    """Each file as a document of its own, and all of them as the lines of one body."""
    files = suite(shared_data)
    assert len(files) > 300
    for content in [*files.values(), b"\n".join(files.values())]:
        document = content in files.values()
        answer = web.post(f"{ADDRESS}&format={'json' if document else 'ndjson'}", data=content)
        assert answer.status_code == 200, (content[:100], answer.text)
        assert answer.json
        assert answer.json["successful_rows"] + answer.json["quarantined_rows"] == sent(content, document=document)
        assert answer.json["successful_rows"] == 0, "no file of the suite is an event"


def test_the_json_test_suite_as_columns(
    web: FlaskClient, client: Client, settings: Settings, shared_data: Path
) -> None:
    """Each file as the value of a column, as JSON and as text: bytes that are no JSON may cost their line, no other."""
    lines, texts = [], {}
    for content in suite(shared_data).values():
        if b"\n" not in content.strip():
            lines.append(json.dumps(event())[:-1].encode() + b', "properties": ' + content.strip() + b"}")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        texts[uuid.uuid4().hex] = text
    lines += [json.dumps(event(event_id=name, properties=text)).encode() for name, text in texts.items()]
    body = b"\n".join(lines)
    answer = web.post(ADDRESS, data=body)
    assert answer.status_code == 200, answer.text
    assert answer.json
    assert answer.json["successful_rows"] + answer.json["quarantined_rows"] == sent(body, document=False)
    found = client.query(
        f"select event_id, properties from {settings.database}.app_events where import_id = {{id:String}}",
        parameters={"id": answer.json["import_id"]},
    ).result_rows
    kept = dict(found)
    assert {name: kept.get(name) for name in texts} == texts


def test_the_json_test_suite_as_files(client: Client, folder: Settings, shared_data: Path) -> None:
    expected = {}
    for number, (path, content) in enumerate(suite(shared_data).items()):
        extension = (".ndjson", ".json")[number % 2]
        file = Path(folder.landing_url, path.replace("/", "-")).with_suffix(extension)
        file.write_bytes(content)
        os.utime(file, (0, 0))
        expected[file.name] = sent(content, document=extension == ".json")
    outcomes = {outcome.path: outcome for outcome in ingest(client, folder)}
    assert {outcome.state for outcome in outcomes.values()} == {"done"}
    # Several have the same content; only the first of them brings its lines.
    assert outcomes.keys() == expected.keys()
    assert all(outcome.lines in (0, expected[path]) for path, outcome in outcomes.items())


@pytest.mark.parametrize("way", ["lines", "document", "file"])
def test_naughty_strings_in_every_column_come_back_unchanged(
    web: FlaskClient, client: Client, folder: Settings, shared_data: Path, way: str
) -> None:
    texts = naughty(shared_data)
    assert len(texts) > 500
    # A column's other events differ by their user, or by their session where the user is what is tried.
    events = [
        {**event(), "session_id": way, column: text, "os_version" if column != "os_version" else "country": str(number)}
        for column in TEXT_COLUMNS
        for number, text in enumerate(texts)
    ]
    if way == "document":
        body = json.dumps(events, ensure_ascii=False).encode("utf-8", "surrogatepass")
    else:
        body = b"\n".join(json.dumps(event).encode("utf-8", "surrogatepass") for event in events)
    if way == "file":
        file = Path(folder.landing_url, "naughty.ndjson")
        file.write_bytes(body)
        os.utime(file, (0, 0))
        [outcome] = ingest(client, folder)
        assert (outcome.state, outcome.lines, outcome.quarantined) == ("done", len(events), 0)
        import_id = content_id([body], ".ndjson")
    else:
        answer = web.post(f"{ADDRESS}&format={'json' if way == 'document' else 'ndjson'}", data=body)
        assert answer.json
        assert (answer.json["successful_rows"], answer.json["quarantined_rows"]) == (len(events), 0), answer.text
        import_id = answer.json["import_id"]
    for column in TEXT_COLUMNS:
        found = client.query(
            f"select groupUniqArray(hex({column})) from {folder.database}.app_events where import_id = {{id:String}}",
            parameters={"id": import_id},
        ).result_rows[0][0]
        assert {text.encode().hex().upper() for text in texts} <= set(found), column


def test_naughty_strings_come_back_from_the_endpoints(web: FlaskClient, endpoints: None, shared_data: Path) -> None:
    """As event types, and as keys and values of properties; asked for by each of them too."""
    texts = naughty(shared_data)
    name = uuid.uuid4().hex
    day = {"event_time": "2031-03-03 03:03:03"}  # no other test's
    pairs = [{"key": f"{name}_{number}", "value": text} for number, text in enumerate(texts)]
    events = [event(**day, event_type=name, properties=json.dumps(pair)) for pair in pairs]
    events += [event(**day, event_type=text) for text in texts]
    events += [event(**day, event_type=f"{name}_keys", properties=json.dumps({text: name})) for text in texts]
    answer = web.post(f"{ADDRESS}&format=json", data=json.dumps(events).encode())
    assert answer.json
    assert answer.json["successful_rows"] == len(events), answer.text
    within = {"start_date": "2031-03-03", "end_date": "2031-03-03"}

    def ask(endpoint: str, **parameters: object) -> list[dict[str, object]]:
        answer = web.get(f"/v0/pipes/{endpoint}.json", query_string={**within, **parameters})
        assert answer.status_code == 200, answer.text
        assert answer.json
        return answer.json["data"]

    found = ask("event_properties", event_type=name, limit=10_000)
    values = {row["property_key"]: row["property_value"] for row in found}
    assert values == {pair["key"]: pair["value"] for pair in pairs}
    assert {row["event_type"] for row in ask("events_by_type")} >= set(texts)
    for text in texts[::10]:
        rows = ask("event_properties", event_type=f"{name}_keys", property_key=text)
        assert [row["property_key"] for row in rows] in ([text], []), text


def test_one_bad_row_in_ten_thousand(web: FlaskClient, client: Client, settings: Settings) -> None:
    lines = [json.dumps(event()).encode() for _ in range(10_000)]
    lines[6_788] = json.dumps(event(event_time="2025-02-30 00:00:00")).encode()
    answer = web.post(ADDRESS, data=b"\n".join(lines))
    assert answer.json
    assert (answer.json["successful_rows"], answer.json["quarantined_rows"]) == (9_999, 1)
    [reject] = answer.json["quarantined"]
    assert (reject["line"], reject["column"]) == (6_789, "event_time")
    [(line_number, raw, columns)] = client.query(
        f"select line_number, raw, c__error_column from {settings.database}.app_events_quarantine "
        "where c__import_id = {id:String}",
        parameters={"id": answer.json["import_id"]},
    ).result_rows
    assert (line_number, raw, columns) == (6_789, lines[6_788].decode(), ["event_time"])


# --- what a machine makes up ---------------------------------------------------------------------------------------

JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=10,
)
EVENTS = strategies.lists(strategies.dictionaries(strategies.sampled_from((*TEXT_COLUMNS, "event_time")), JSON))
BODIES = strategies.one_of(
    strategies.binary(max_size=300),
    strategies.lists(strategies.sampled_from([*b'{}[]",:\\\n\r\t 0"ae\xff\xef\xbb\xbf'])).map(bytes),
    EVENTS.map(lambda events: json.dumps(events).encode()),
    EVENTS.map(lambda events: b"\n".join(json.dumps(event).encode() for event in events)),
)
# What http.server and browsers let through: no control characters, Latin-1.
HEADER_TEXT = strategies.text(strategies.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"))
HEADERS = strategies.dictionaries(
    strategies.sampled_from(
        ("Content-Type", "Content-Encoding", "Idempotency-Key", "X-Request-Id", "Accept", "Accept-Encoding", "Origin",
         "If-None-Match", "Prefer")
    ),
    HEADER_TEXT
    | strategies.sampled_from(
        ("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "gzip", "zstd",
         "deflate", "br", "identity", "*", "text/csv; charset=latin-1")
    ),
)  # fmt: skip


@FUZZ
@given(body=BODIES, headers=HEADERS, document=strategies.booleans())
def test_any_body_with_any_headers(
    web: FlaskClient, client: Client, settings: Settings, body: bytes, headers: dict[str, str], document: bool
) -> None:
    answer = web.post(f"{ADDRESS}&format={'json' if document else 'ndjson'}", data=body, headers=headers)
    assert answer.status_code in (200, 400, 413, 415), answer.text
    assert answer.json is not None
    if answer.status_code == 200 and not headers.keys() & {"Content-Encoding", "Idempotency-Key"}:
        lines = sent(body, document=document)
        assert answer.json["successful_rows"] + answer.json["quarantined_rows"] == lines
        assert import_result(client, settings, answer.json["import_id"]).lines == lines


NAMES = strategies.sampled_from(
    ("start_date", "end_date", "app_version", "event_type", "property_key", "limit", "country", "device_type", "region",
     "from", "format", "utm_source", "query", "database", "default_format", "param_limit")
)  # fmt: skip
VALUES = (
    strategies.text(max_size=30)
    | strategies.integers().map(str)
    | strategies.datetimes().map(str)
    | strategies.sampled_from(("all", "2025-02-30", "1e9", "' or 1=1 --", "\\N", "{x:String}", "\0", "9" * 40))
)


@FUZZ
@given(
    endpoint=strategies.sampled_from(
        ("events_by_type", "event_properties", "user_sessions", "events_by_category", "sessions_by_country")
    ),
    extension=strategies.sampled_from(("json", "csv", "ndjson", "parquet", "arrow", "xlsx")),
    parameters=strategies.lists(strategies.tuples(NAMES, VALUES), max_size=4),
    headers=HEADERS,
)
def test_any_parameters(
    web: FlaskClient,
    endpoints: None,
    endpoint: str,
    extension: str,
    parameters: list[tuple[str, str]],
    headers: dict[str, str],
) -> None:
    answer = web.get(f"/v0/pipes/{endpoint}.{extension}", query_string=parameters, headers=headers)
    assert answer.status_code in (200, 304, 400, 404), answer.text


@pytest.fixture(autouse=True)
def _nothing_is_spooled(settings: Settings) -> Iterator[None]:
    """What can be answered is not put off: no input makes ClickHouse fail."""
    spool = Path(settings.landing_url, "spool")
    before = set(spool.glob("*"))
    yield
    assert set(spool.glob("*")) == before
