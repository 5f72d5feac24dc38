"""Everything with one command: ``python -m warehouse.run`` runs ClickHouse, Dagster and the API until SIGTERM.

Each part is a process in a session and process group of its own, so that Ctrl-C reaches the supervisor alone and the
supervisor ends the parts in order: the API, then Dagster with its runs, and ClickHouse last.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import dotenv
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from warehouse.background import in_background
from warehouse.connection import admin_token, connect
from warehouse.landing import LandingFolder
from warehouse.preflight import StartError, check_clickhouse, check_landing, check_ports, clickhouse_url, data_folder
from warehouse.processes import Part, free_port, http_answers, listens, reachable
from warehouse.sample import land_sample
from warehouse.schema import ServeUserError, SqlUserError, apply_schema
from warehouse.settings import PROJECT_DIR, Settings, SettingsError

BIN = Path(sys.executable).parent
SAMPLE_FILE = "sample_events.ndjson"
SAMPLE_SEED = 1
SAMPLE_DAYS = 30
START_SECONDS = 120
SAMPLE_SECONDS = 120
# The API finishes its requests within 15 s, ClickHouse its writes within about 2 s.
STOP_SECONDS = 20
# What the machine refuses to start is tried again after this.
RETRY_SECONDS = 5
# A part that ran this long starts its back-off anew when it dies.
STABLE_SECONDS = 60

T = TypeVar("T")


class Stop(Exception):
    """A signal asked for the end."""


class Supervisor:
    """Starts the parts, keeps them running, and ends them in order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.began = time.monotonic()
        self.stop_requested = False
        self.home = settings.data_dir / "dagster"
        self.environ = os.environ | {
            "DATA_DIR": str(settings.data_dir),
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "DAGSTER_HOME": str(self.home),
            # Two copies of the project that run side by side share a checkout, and so must not share dbt's files.
            "DBT_TARGET_PATH": str(settings.data_dir / "dbt"),
            "DBT_LOG_PATH": str(settings.data_dir / "dbt"),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "PYTHONUNBUFFERED": "1",
        }
        python, code_port = [sys.executable, "-m"], free_port()
        workspace = ["--workspace", str(self.home / "workspace.yaml")]
        web = ["--host", "127.0.0.1", "--port", str(settings.dagster_port)]
        clickhouse = f"http://127.0.0.1:{settings.clickhouse_port}/ping"
        self.api_url = f"http://{reachable(settings.api_host)}:{settings.api_port}"
        self.dagster_url = f"http://127.0.0.1:{settings.dagster_port}"
        self.clickhouse = self._part("clickhouse", [*python, "warehouse.embedded"], lambda: http_answers(clickhouse))
        self.dbt = self._part("dbt", [])
        self.code = self._part(
            "dagster-code-server",
            [*python, "warehouse.code_server", str(code_port)],
            lambda: listens("127.0.0.1", code_port),
        )
        self.web = self._part(
            "dagster-webserver",
            [str(BIN / "dagster-webserver"), *web, *workspace, "--log-level", "warning"],
            lambda: http_answers(f"{self.dagster_url}/server_info"),
        )
        self.daemon = self._part(
            "dagster-daemon", [str(BIN / "dagster-daemon"), "run", *workspace, "--log-level", "warning"]
        )
        self.api = self._part("api", [*python, "serve"], lambda: http_answers(f"{self.api_url}/health"))
        # Stopped from the last stage to the first, the parts of a stage together.
        self.stages = [[self.clickhouse], [self.dbt, self.code, self.web, self.daemon], [self.api]]
        self.watched: list[Part] = []
        self.home.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT_DIR / "warehouse" / "dagster.yaml", self.home)
        (self.home / "workspace.yaml").write_text(
            f"load_from: [grpc_server: {{host: 127.0.0.1, port: {code_port}, location_name: orchestration}}]\n"
        )

    def start_all(self, sample_events: int) -> None:
        """Start everything; on a fresh embedded database also land sample events.

        Raises:
            StartError: a part ended or does not answer.
            Stop: a signal came.
        """
        if self.settings.embedded:
            self._start(self.clickhouse)
            self._wait_for(self.clickhouse)
        try:
            self._done(lambda: apply_schema(self.settings))
        except ServeUserError as error:
            self.say(f"{error}; the API connects as {self.settings.clickhouse_user}, with all its rights")
            self.environ["CLICKHOUSE_SERVE_USER"] = self.settings.clickhouse_user
        except SqlUserError as error:
            self.say(f"{error}; the API takes no SQL")
        client = self._done(lambda: connect(self.settings))
        count_views = f"select count() from system.tables where database = '{self.settings.api_database}'"
        views = self._done(lambda: client.command(count_views))
        # The endpoints have to be there before the first request; later changes are built by Dagster's schedule.
        self._run_dbt("parse" if views else "build")
        sample_landed = (
            self.settings.embedded and sample_events and self._done(lambda: self._land_sample(client, sample_events))
        )
        self._start(self.code)
        self._start(self.api)
        self._wait_for(self.code)
        self._start(self.web)
        self._start(self.daemon)
        self._wait_for(self.api)
        self._wait_for(self.web)
        if sample_landed:
            self._wait_for_sample(client, sample_events)
        token = admin_token(self.settings)
        self.say(
            f"Everything runs; Ctrl-C ends it.\n\n"
            f"  API         {self.api_url}\n"
            f"  Dagster     {self.dagster_url}\n"
            f"  ClickHouse  {clickhouse_url(self.settings)}\n"
            f"  token       {token}\n"
            f"  logs        {self.api.log.parent}\n\n"
            f'  curl -H "Authorization: Bearer {token}" "{self.api_url}/v0/pipes/events_by_type.json"\n'
        )

    def watch(self) -> NoReturn:
        """Start parts that die again, after 1, 2, 4 … 30 s, until a signal comes (`Stop`)."""
        while True:
            self.pause(0.5)
            now = time.monotonic()
            for part in self.watched:
                part.cut_log()
                if part.process is None and now >= part.restart_at:
                    try:
                        part.start(self.environ)
                    except OSError as error:  # no memory, no process, no file to be had: for now
                        self.say(f"{part.name} cannot be started: {error}; it is tried again in {RETRY_SECONDS} s")
                        part.restart_at = now + RETRY_SECONDS
                elif part.process and not part.runs():
                    part.restarts = 0 if now - part.started_at > STABLE_SECONDS else part.restarts + 1
                    delay = min(2 ** max(part.restarts - 1, 0), 30)
                    self.say(f"{part.failure()}; it is started again in {delay} s")
                    part.kill_all()
                    part.restart_at = now + delay

    def stop(self) -> None:
        """End every part in order; what does not end by itself within 20 s is killed."""
        for stage in reversed(self.stages):
            parts = [part for part in stage if part.runs()]
            for part in parts:
                self.say(f"stopping {part.name}")
                part.send(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while any(part.runs() for part in parts) and time.monotonic() < deadline:
                time.sleep(0.05)
            for part in stage:
                if part.runs():
                    self.say(f"{part.name} does not end: killed")
                part.kill_all()
        self.say("stopped")

    def request_stop(self, number: int, _: FrameType | None) -> None:
        """Signal handler; during the stop it only says so, as every wait there is bounded."""
        if self.stop_requested:
            self.say("stopping already")
        self.stop_requested = True

    def pause(self, seconds: float) -> None:
        """Sleep, or raise `Stop` when a signal has come."""
        deadline = time.monotonic() + seconds
        while not self.stop_requested and time.monotonic() < deadline:
            time.sleep(min(0.2, seconds))
        if self.stop_requested:
            raise Stop

    def _done(self, work: Callable[[], T]) -> T:
        """What a call returns that may wait for ClickHouse for minutes, which no signal would end.

        Raises:
            Stop: a signal came; the call goes on, and nobody waits for it.
        """
        result = in_background(work)
        while not result.done():
            self.pause(0.02)
        return result.result()

    def say(self, text: str) -> None:
        # Whoever read it may be gone, such as a terminal that was closed: the parts are looked after all the same.
        with suppress(OSError):
            print(f"{time.monotonic() - self.began:5.1f} s  {text}", flush=True)

    def _part(self, name: str, command: list[str], answers: Callable[[], bool] = lambda: True) -> Part:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        return Part(name, command, log, answers)

    def _start(self, part: Part) -> None:
        self.say(f"starting {part.name}")
        part.start(self.environ)
        self.watched.append(part)

    def _wait_for(self, part: Part) -> None:
        """Wait until a part answers.

        Raises:
            StartError: it ended, or does not answer in time.
            Stop: a signal came.
        """
        deadline = time.monotonic() + START_SECONDS
        while not part.answers():
            if not part.runs():
                raise StartError(part.failure())
            if time.monotonic() > deadline:
                raise StartError(f"{part.name} does not answer after {START_SECONDS} s (log: {part.log})")
            self.pause(0.2)
        self.say(f"{part.name} answers")

    def _run_dbt(self, command: str) -> None:
        """Run a dbt command to its end.

        Raises:
            StartError: it failed.
            Stop: a signal came.
        """
        project = ["--project-dir", str(PROJECT_DIR), "--profiles-dir", str(PROJECT_DIR)]
        self.dbt.command = [str(BIN / "dbt"), "--no-use-colors", command, *project]
        self.say(f"running dbt {command}")
        self.dbt.start(self.environ)
        while self.dbt.runs():
            self.pause(0.2)
        if self.dbt.exit_code:
            raise StartError(self.dbt.failure())

    def _land_sample(self, client: Client, events: int) -> bool:
        """Land sample events when nothing was ever imported or landed; True when it did."""
        folder = LandingFolder(self.settings)
        imports = client.query(f"select count() from {self.settings.database}.imports").result_rows[0][0]
        if imports or folder.fs.exists(folder.full(SAMPLE_FILE)):
            return False
        self.say(f"adding {events:,} sample events of the last {SAMPLE_DAYS} days")
        until = datetime.now(UTC)
        land_sample(client, self.settings, SAMPLE_FILE, events=events, days=SAMPLE_DAYS, until=until, seed=SAMPLE_SEED)
        return True

    def _wait_for_sample(self, client: Client, events: int) -> None:
        # The file's row in the ledger comes last; sums of imports can be there before the rows of app_events are.
        done = f"select count() from {self.settings.database}.landing_files where path = '{SAMPLE_FILE}'"
        deadline = time.monotonic() + SAMPLE_SECONDS
        while not self._done(lambda: client.query(done).result_rows[0][0]):
            if time.monotonic() > deadline:
                self.say(f"the sample events are not in after {SAMPLE_SECONDS} s: see the runs at {self.dagster_url}")
                return
            self.pause(0.5)
        self.say(f"{events:,} sample events are in")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m warehouse.run", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--sample-events", type=int, default=100_000, help="added to a fresh embedded database (default: 100000)"
    )
    arguments = parser.parse_args()
    dotenv.load_dotenv(PROJECT_DIR / ".env")
    # It reports failed connections to the terminal itself; here they are answers.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    try:
        settings = Settings.from_env()
        with data_folder(settings, "run.lock"):
            check_ports(settings)
            check_landing(settings)
            if not settings.embedded:
                check_clickhouse(settings)
            supervisor = Supervisor(settings)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, supervisor.request_stop)
            try:
                supervisor.start_all(arguments.sample_events)
                supervisor.watch()
            except Stop:
                pass
            finally:
                supervisor.stop()
    except (StartError, SettingsError, ClickHouseError, OSError) as error:
        sys.exit(f"Cannot run: {error}")


if __name__ == "__main__":
    main()
