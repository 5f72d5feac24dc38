"""Jobs: asked for with the API's rights, read by their id, done by Dagster in order."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from warehouse.connection import connect
from warehouse.framing import frames
from warehouse.landing import ingest, land, spool
from warehouse.settings import Settings


@pytest.fixture(scope="module")
def api(settings: Settings) -> Client:
    """A client with the rights of the API."""
    return connect(settings, as_serve_user=True)


def ask(api: Client, settings: Settings, kind: str, **arguments: object) -> str:
    job_id = uuid.uuid4().hex
    api.insert(
        f"{settings.database}.job_requests",
        [[job_id, kind, json.dumps(arguments)]],
        column_names=["job_id", "kind", "arguments"],
        column_type_names=["String", "String", "String"],
        settings={"insert_deduplication_token": job_id},
    )
    return job_id


def result(api: Client, settings: Settings, job_id: str) -> dict:
    sql = f"select * from {settings.database}.job_results(job_id = {{id:String}})"
    rows = list(api.query(sql, parameters={"id": job_id}).named_results())
    return rows[0] if rows else {}


def test_the_api_asks_and_reads_and_nothing_else(api: Client, settings: Settings) -> None:
    job_id = ask(api, settings, "replay", condition="country = ''")
    found = result(api, settings, job_id)
    assert (found["kind"], found["status"], found["started_at"]) == ("replay", "waiting", None)
    assert json.loads(found["arguments"]) == {"condition": "country = ''"}
    listed = {row["job_id"]: row for row in api.query(f"select * from {settings.database}.job_list").named_results()}
    assert listed[job_id] == found
    assert result(api, settings, "unheard-of") == {}
    for table in ("jobs", "job_requests", "landing_files", "imports"):
        with pytest.raises(DatabaseError, match="Not enough privileges"):
            api.query(f"select * from {settings.database}.{table}")
    with pytest.raises(DatabaseError, match="Not enough privileges"):
        api.command(f"insert into {settings.database}.jobs (job_id, status) values ('x', 'done')")


def test_an_import_is_followed_by_its_id(api: Client, client: Client, settings: Settings, tmp_path: Path) -> None:
    import_id = uuid.uuid4().hex
    land(
        api, settings, import_id, "http", frames([b'{"bad": 1}\n{"event_id": "a", "event_type": "b", "event_time": 1}'])
    )
    found = result(api, settings, import_id)
    assert (found["kind"], found["status"], found["lines"], found["quarantined"]) == ("import", "done", 2, 1)
    # A file's import goes on until the ledger has the file.
    import_id = uuid.uuid4().hex
    land(api, settings, import_id, "big.ndjson", frames([b'{"event_id": "a", "event_type": "b", "event_time": 1}']))
    found = result(api, settings, import_id)
    assert (found["status"], found["lines"]) == ("working", 1)
    # A file that cannot be read ends in an error, by the id in its name.
    folder = replace(settings, landing_url=str(tmp_path))
    path = Path(tmp_path, spool(folder, import_id, b"", ".json"))
    path.rename(path.with_suffix(".parquet"))
    assert [outcome.state for outcome in ingest(client, folder)] == ["set aside"]
    found = result(api, settings, import_id)
    assert found["status"] == "error"
    assert "no Parquet file" in found["error"]
