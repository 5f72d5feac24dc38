"""The embedded server is reached through a private entry point of its wheel: these tests fail loudly if it moves."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from conftest import EmbeddedServer, environment, refusal

from warehouse.connection import connect
from warehouse.schema import apply_schema


@pytest.fixture
def own(tmp_path: Path) -> EmbeddedServer:
    return EmbeddedServer(environment(tmp_path))


def test_it_is_a_clickhouse_of_the_version_that_the_project_was_made_for(server: EmbeddedServer) -> None:
    assert connect(server.settings).server_version.startswith("26.9.")


def test_data_outlives_kill_9_and_a_clean_stop(own: EmbeddedServer) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        own.start()
        apply_schema(own.settings)
        client = connect(own.settings)
        client.insert(f"{own.settings.database}.landing", [[f"{number.name} is no event"]], column_names=["line"])
        own.stop(number)
    own.start()
    lines = connect(own.settings).query(f"select raw from {own.settings.database}.app_events_quarantine order by raw")
    own.stop()
    assert lines.result_rows == [("SIGKILL is no event",), ("SIGTERM is no event",)]


def test_a_second_one_says_what_is_in_its_way(server: EmbeddedServer, tmp_path: Path) -> None:
    other_port = environment(Path(server.environ["DATA_DIR"]))
    assert "in use by another copy" in refusal("warehouse.embedded", other_port)
    same_port = environment(tmp_path) | {"CLICKHOUSE_PORT": server.environ["CLICKHOUSE_PORT"]}
    assert "set CLICKHOUSE_PORT to a free one" in refusal("warehouse.embedded", same_port)
