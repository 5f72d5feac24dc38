"""Jobs: asked for with the API's rights, read by their id, done by Dagster in order."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.httpclient import HttpClient
from conftest import EmbeddedServer, own_server
from erasure import account, event

from warehouse import jobs
from warehouse.connection import connect
from warehouse.framing import frames
from warehouse.jobs import Interrupted, Job, do_jobs, do_now
from warehouse.landing import UPLOADS, ingest, land
from warehouse.settings import Settings, SettingsError

if TYPE_CHECKING:
    import dagster as dg


@pytest.fixture(scope="module")
def api(settings: Settings) -> Client:
    """A client with the rights of the API."""
    return connect(settings, as_serve_user=True)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A ClickHouse that a test may empty."""
    with own_server(tmp_path_factory.mktemp("jobs")) as server:
        yield server


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
    for table in ("jobs", "job_states", "job_requests", "landing_files", "imports"):
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
    path = Path(tmp_path, UPLOADS, f"{import_id}.parquet")
    path.parent.mkdir()
    path.write_bytes(b"no Parquet")
    assert [outcome.state for outcome in ingest(client, folder)] == ["set aside"]
    found = result(api, settings, import_id)
    assert found["status"] == "error"
    assert "no Parquet file" in found["error"]


def test_the_second_of_a_job_is_over_also_when_the_clock_is_set_back(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    seconds = iter([0, -2, -1, 0, 0.5, 1])
    monkeypatch.setattr(jobs, "_now", lambda _: noon + datetime.timedelta(seconds=next(seconds)))
    monkeypatch.setattr(jobs, "_write", lambda *_: None)
    job = Job(uuid.uuid4().hex, "replay", {}, "working", noon)
    assert jobs.cutoff(client, settings, job) == f"toDateTime({int(noon.timestamp())}, 'UTC')"
    assert next(seconds, None) is None


@pytest.mark.parametrize("statement", [1, 2, 3])
@pytest.mark.parametrize("kind", ["delete_data", "truncate", "replay"])
def test_what_fails_past_the_point_of_no_return_is_done_again(
    own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, kind: str, statement: int
) -> None:
    """As when the server runs out of memory after some of a statement's parts are written."""
    settings = own.settings
    client = connect(settings)
    user = uuid.uuid4().hex
    lines = [event(user), event(user, event_time="noon"), event(user, event_time="night")]
    land(client, settings, user, "http", frames(["\n".join(map(json.dumps, lines)).encode()]))
    client.command(
        f"alter table {settings.database}.app_events_quarantine update event_time = '2025-05-11 12:00:00' "
        "where event_time = 'noon'",
        settings={"mutations_sync": 2},
    )
    arguments = {"delete_condition": f"user_id = '{user}'", "condition": f"user_id = '{user}'"}
    command, done = HttpClient.command, 0

    def failing(self: HttpClient, sql: str, *args: object, **options: object) -> object:
        nonlocal done
        answer = command(self, sql, *args, **options)
        done += 1
        if done == statement:
            error = DatabaseError("Code: 241. DB::Exception: Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)")
            error.code = 241
            raise error
        return answer

    monkeypatch.setattr(HttpClient, "command", failing)
    with pytest.raises(Interrupted):
        do_now(client, settings, kind, arguments)
    monkeypatch.undo()
    [job] = do_jobs(client, settings)
    assert (job.status, job.rows_affected) == ("done", 1 if kind == "replay" else 3)
    after = account(client, settings, user)
    assert (after["kept"], after["quarantined"], after["erased"]) == ((2, 1, 0) if kind == "replay" else (0, 0, 3))


@pytest.fixture
def repository(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.RepositoryDefinition]:
    """What Dagster loads, on the session's server and a landing folder of the test's own."""
    for name in set(os.environ) - set(server.environ):
        monkeypatch.delenv(name)
    for name, value in (server.environ | {"LANDING_URL": str(tmp_path / "landing")}).items():
        monkeypatch.setenv(name, value)
    import dagster as dg

    from orchestration.definitions import defs

    # Loading asks the instance that was opened last, which may be another test's and gone.
    with dg.DagsterInstance.ephemeral():
        yield defs().get_repository_def()


def test_dagster_does_what_was_asked_for(
    repository: dg.RepositoryDefinition, api: Client, client: Client, settings: Settings
) -> None:
    """Asked for with the API's rights, noticed by the sensor, done in order, one that fails among them."""
    import dagster as dg

    user = f"u{uuid.uuid4().hex}"
    event = {"event_id": user, "user_id": user, "event_type": "open", "event_time": "2025-05-11 22:01:58"}
    content = json.dumps(event) + "\n" + json.dumps(event | {"event_time": "noon"})
    land(api, settings, user, "http", frames([content.encode()]))
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> dg.SensorExecutionData:
            context = dg.build_sensor_context(instance, repository_def=repository)
            return repository.get_sensor_def("asked_jobs").evaluate_tick(context)

        while tick().run_requests:  # jobs that other tests asked for
            assert repository.get_job("jobs").execute_in_process(instance=instance).success
        assert tick().skip_message == "No jobs wait."
        refused = ask(api, settings, "delete_data", delete_condition="user_id in (select 1)")
        unreadable = uuid.uuid4().hex
        api.command(f"insert into {settings.database}.job_requests values ('{unreadable}', 'delete_data', 'x')")
        erased = ask(api, settings, "delete_data", delete_condition=f"user_id = '{user}'")
        assert result(api, settings, erased)["status"] == "waiting"
        assert tick().run_requests

        run = instance.create_run_for_job(repository.get_job("jobs"), status=dg.DagsterRunStatus.STARTED)
        assert tick().skip_message == "Jobs are being done."
        instance.report_run_failed(run)
        done = repository.get_job("jobs").execute_in_process(instance=instance)
        assert done.success
        assert user not in str(done.all_events), "a condition names the person to forget"
        assert tick().skip_message == "No jobs wait."

    found = result(api, settings, refused)
    assert (found["status"], found["rows_affected"]) == ("error", 0)
    assert "one event at a time" in found["error"]
    assert "empty" in result(api, settings, unreadable)["error"]
    found = result(api, settings, erased)
    assert (found["status"], found["rows_affected"], found["error"]) == ("done", 2, "")
    assert json.loads(found["statistics"])["app_events_quarantine"] == 1
    assert found["created_at"] <= found["started_at"] <= found["updated_at"]


def test_the_share_of_quarantined_lines(
    repository: dg.RepositoryDefinition, client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red above the threshold, with reasons, counts and imports; told by a sensor, since HTTP starts no run."""
    import dagster as dg

    import_id = uuid.uuid4().hex
    # More of one fault than any other test leaves behind.
    bad = [json.dumps({"event_id": str(n), "event_type": "t", "event_time": f"day {n}"}) for n in range(20_000)]
    land(client, settings, import_id, "http", frames(["\n".join(bad).encode()]))
    sensor = repository.get_sensor_def("quarantine_watch")
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None = None) -> dg.SensorExecutionData:
            return sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=cursor, repository_def=repository))

        first = tick()
        (found,) = first.asset_events
        assert (found.asset_key, found.check_name) == (dg.AssetKey("app_events_quarantine"), "quarantine_share")
        assert not found.passed
        assert found.metadata["share"].value > 0.05
        (top, *_) = found.metadata["top_reasons"].records
        assert top.data["column"] == "event_time"
        assert top.data["reason"].startswith("a value is not a time")
        assert top.data["lines"] >= 20_000
        assert len(top.data["imports"].split(", ")) <= 3
        assert "No lines came" in (tick(first.cursor).skip_message or "")
        monkeypatch.setenv("QUARANTINE_SHARE_MAX", "1")
        (found,) = tick().asset_events
        assert found.passed
        assert "top_reasons" not in found.metadata
        monkeypatch.setenv("CLICKHOUSE_PORT", "1")
        assert "does not answer" in (tick().skip_message or "")
    with pytest.raises(SettingsError, match="QUARANTINE_SHARE_MAX is '5 %'; it takes a number from 0 to 1"):
        Settings.from_env({"QUARANTINE_SHARE_MAX": "5 %"})


def test_a_replay_that_a_person_starts(repository: dg.RepositoryDefinition, client: Client, settings: Settings) -> None:
    import dagster as dg

    with dg.DagsterInstance.ephemeral() as instance:
        job = repository.get_job("replay_quarantine")

        def start(condition: str) -> dg.ExecuteInProcessResult:
            config = {"ops": {"replay": {"config": {"condition": condition}}}}
            return job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)

        assert start("c__import_id = 'none'").success
        assert not start("nothing = 1").success
