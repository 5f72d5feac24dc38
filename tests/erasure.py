"""What the tests of erasing and replaying share: events of their own, the account, and jobs that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer

from warehouse.settings import PROJECT_DIR, Settings


def event(user: str, **columns: object) -> dict:
    """A valid event that no other test sends."""
    number = uuid.uuid4().hex
    return {"event_id": number, "user_id": user, "event_type": "open", "event_time": "2025-05-11 22:01:58"} | columns


def account(client: Client, settings: Settings, import_id: str) -> dict:
    """The account of an import, after a look at whether it agrees with the tables."""
    [row] = client.query(
        f"select * from {settings.database}.import_account where import_id = {{id:String}}",
        parameters={"id": import_id},
    ).named_results()
    for column, table, name in (
        ("kept", "app_events", "import_id"),
        ("quarantined", "app_events_quarantine", "c__import_id"),
    ):
        rows = client.query(
            f"select count() from {settings.database}.{table} where {name} = {{id:String}}",
            parameters={"id": import_id},
        ).result_rows[0][0]
        assert row[column] == rows, (column, row)
    assert row["lines"] == row["kept"] + row["quarantined"] + row["erased"]
    assert row["missing"] == 0
    return row


def put(settings: Settings, name: str, content: bytes) -> None:
    """Put a complete file into the landing folder."""
    path = Path(settings.landing_url, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    past = time.time() - 10
    os.utime(path, (past, past))


# A process that dies by kill -9 right before its n-th statement that changes something.
KILLED = """
import os, signal, sys
from clickhouse_connect.driver.httpclient import HttpClient
from warehouse.connection import connect
from warehouse.jobs import do_now
from warehouse.settings import Settings
settings, left, command = Settings.from_env(), [int(sys.argv[1])], HttpClient.command
def counted(self, cmd, *args, **options):
    if cmd.split()[0] in ("insert", "alter"):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return command(self, cmd, *args, **options)
client = connect(settings)
HttpClient.command = counted
do_now(client, settings, sys.argv[2], {sys.argv[3]: sys.argv[4]})
"""


def killed(server: EmbeddedServer, settings: Settings, statements: int, kind: str, name: str, value: str) -> None:
    """Begin a job in a process of its own that is killed after some statements."""
    environ = server.environ | {"LANDING_URL": settings.landing_url}
    arguments = [sys.executable, "-c", KILLED, str(statements), kind, name, value]
    ended = subprocess.run(arguments, env=environ, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def command(environ: dict[str, str], settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the project as a person does, on the settings' landing folder."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environ | {"LANDING_URL": settings.landing_url},
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        timeout=300,
    )
