"""``python -m warehouse.run`` as a user sees it: real parts, free ports, a data folder of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EmbeddedServer, environment, free_port, refusal

from warehouse import processes, run
from warehouse.connection import admin_token, connect
from warehouse.processes import Part
from warehouse.run import Stop, Supervisor
from warehouse.settings import PROJECT_DIR, Settings

SAMPLE_EVENTS = 3000
PARTS = {
    "clickhouse": "-m warehouse.embedded",
    "dagster-code-server": "-m warehouse.code_server",
    "dagster-webserver": "/dagster-webserver",
    "dagster-daemon": "/dagster-daemon",
    "api": "-m serve",
}


class Copy:
    """A running copy of the project."""

    def __init__(self, environ: dict[str, str], output: Path) -> None:
        self.environ, self.output = environ, output
        self.settings = Settings.from_env(environ)
        self.api_url = f"http://127.0.0.1:{self.settings.api_port}"
        self.process: subprocess.Popen[bytes]

    def start(self, *program: str) -> None:
        """Start it and wait until it runs; `program` are arguments of Python other than those that the README names."""
        program = program or ("-m", "warehouse.run", "--sample-events", str(SAMPLE_EVENTS))
        command = [sys.executable, *program]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=self.environ, cwd=PROJECT_DIR, stdout=output, stderr=subprocess.STDOUT
            )
        until(lambda: "Everything runs" in self.text() or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.text()

    def text(self) -> str:
        return self.output.read_text()

    def processes(self) -> dict[int, str]:
        """Command lines by pid of everything that was started for this copy, the supervisor aside."""
        mine = f"DATA_DIR={self.settings.data_dir}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mine in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended meanwhile
        found.pop(self.process.pid, None)
        return {pid: command for pid, command in found.items() if command}

    def pid_of(self, part: str) -> int | None:
        """The part's own process, which leads its group; None while there is none."""
        found = (pid for pid, command in self.processes().items() if PARTS[part] in command and os.getpgid(pid) == pid)
        return next(found, None)

    def events(self) -> int:
        """What the printed curl command answers: events of all types."""
        token, url = re.findall(r'curl -H "Authorization: Bearer (\S+)" "(\S+)"', self.text())[-1]
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own address
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - our own address
            return sum(row["event_count"] for row in json.load(answer)["data"])


def until(condition: Callable[[], bool], timeout: float) -> None:
    """Wait for a condition; `timeout` in seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    folder = tmp_path_factory.mktemp("run")
    copy = Copy(environment(folder / "data"), folder / "output")
    copy.start()
    yield copy
    if copy.process.poll() is None:
        copy.process.terminate()
        copy.process.wait(60)


@pytest.mark.timeout(240)
def test_a_fresh_copy_has_every_part_and_the_sample_events(running: Copy) -> None:
    assert [part for part in PARTS if running.pid_of(part) is None] == []
    assert running.events() == SAMPLE_EVENTS


def test_the_commands_of_the_readme(running: Copy) -> None:
    """The two requests of the tutorial as the README shows them, sent by a shell."""
    readme = (PROJECT_DIR / "README.md").read_text()
    [commands] = re.findall(r"```bash\n(curl -X POST.*?)```", readme, re.DOTALL)
    answers = subprocess.run(
        ["/bin/bash", "-c", commands.replace("127.0.0.1:8000", f"127.0.0.1:{running.settings.api_port}")],
        env=running.environ | {"TOKEN": admin_token(running.settings)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    received, _, answer = answers.partition("}")
    assert json.loads(received + "}")["successful_rows"] == 1
    assert json.loads(answer)["data"] == [{"event_type": "app_open", "event_count": 1}]


def test_the_sample_command_of_the_readme(running: Copy) -> None:
    [command] = re.findall(
        r"`\.venv/bin/python (-m warehouse\.sample --events) \d+`", (PROJECT_DIR / "README.md").read_text()
    )
    before = running.events()
    subprocess.run([sys.executable, *command.split(), "500"], env=running.environ, cwd=PROJECT_DIR, check=True)
    until(lambda: running.events() == before + 500, 120)


def test_a_second_copy_on_the_same_data_folder_is_refused(running: Copy) -> None:
    other_ports = environment(running.settings.data_dir)
    assert "in use by another copy" in refusal("warehouse.run", other_ports)


@pytest.mark.parametrize("name", ["CLICKHOUSE_PORT", "API_PORT", "DAGSTER_PORT"])
def test_a_taken_port_is_named(running: Copy, tmp_path: Path, name: str) -> None:
    environ = environment(tmp_path) | {name: running.environ[name]}
    message = refusal("warehouse.run", environ)
    assert name in message
    assert f"Port {running.environ[name]}" in message


@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_dies_is_started_again(running: Copy, part: str) -> None:
    killed, events = running.pid_of(part), running.events()
    assert killed
    os.kill(killed, signal.SIGKILL)
    until(lambda: running.pid_of(part) not in (None, killed), 20)
    assert f"{part} was ended by SIGKILL" in running.text()

    def answers() -> bool:
        try:
            return running.events() == events
        except OSError:
            return False

    until(answers, 60)


@pytest.mark.timeout(240)
def test_sigterm_ends_every_part_in_order_and_the_next_start_continues(running: Copy) -> None:
    events = running.events()
    running.process.terminate()
    time.sleep(0.2)
    running.process.send_signal(signal.SIGINT)  # a second signal changes nothing
    assert running.process.wait(60) == 0
    assert running.processes() == {}
    stopped = re.findall(r"stopping ((?!already)\S+)", running.text())
    assert (stopped[0], stopped[-1]) == ("api", "clickhouse")

    running.start()
    assert running.events() == events
    assert "sample events" not in running.text()


@pytest.mark.timeout(120)
def test_a_killed_supervisor_leaves_nothing_running(running: Copy) -> None:
    running.process.kill()
    running.process.wait(10)
    until(lambda: running.processes() == {}, 40)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor of this process; its parts are the test's."""
    supervisor = Supervisor(Settings.from_env(environment(tmp_path)))
    supervisor.stages = []
    yield supervisor
    supervisor.stop()


def shell(supervisor: Supervisor, name: str, script: str) -> Part:
    part = supervisor._part(name, ["/bin/sh", "-c", script])
    supervisor.stages.append([part])
    return part


def test_a_terminal_that_was_closed_does_not_change_the_end(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends SIGHUP, and nothing can be printed any more."""
    ended = tmp_path / "ended"
    for name in ("first", "last"):
        script = f"trap 'sleep 0.3; echo {name} >> {ended}; exit' TERM; echo up; while :; do sleep 0.05; done"
        part = shell(supervisor, name, script)
        supervisor._start(part)
        until(lambda part=part: "up" in part.log.read_text(), 10)

    def closed(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.print", closed)
    supervisor.request_stop(signal.SIGHUP, None)
    supervisor.request_stop(signal.SIGHUP, None)
    with pytest.raises(Stop):
        supervisor.watch()
    supervisor.stop()
    assert ended.read_text().split() == ["last", "first"]


def test_a_machine_in_trouble_does_not_end_the_supervisor(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk too full to keep a long log, a log that was removed, a moment without memory: the part starts again."""
    part = shell(supervisor, "part", "echo up; sleep 0.5; exit 3")
    supervisor._start(part)
    until(lambda: "up" in part.log.read_text(), 10)
    os.truncate(part.log, processes.LOG_BYTES + 1)
    popen, refused = subprocess.Popen, []

    def full(*_: object) -> None:
        part.log.unlink()
        raise OSError(28, "No space left on device")

    def without_memory(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if not refused:
            refused.append(True)
            raise OSError(12, "Cannot allocate memory")
        supervisor.stop_requested = True
        return popen(*arguments, **options)

    monkeypatch.setattr(processes.shutil, "copy", full)
    monkeypatch.setattr(processes.subprocess, "Popen", without_memory)
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.1)
    with pytest.raises(Stop):
        supervisor.watch()
    assert refused
    assert part.runs()


@pytest.mark.timeout(120)
def test_a_start_ends_at_sigterm_also_while_clickhouse_hangs(tmp_path: Path) -> None:
    """It takes the login, and then answers nothing more."""
    server = EmbeddedServer(environment(tmp_path / "own"))
    server.start()
    assert server.process
    environ = environment(tmp_path / "data") | {
        "CLICKHOUSE_HOST": "127.0.0.1",
        "CLICKHOUSE_PORT": server.environ["CLICKHOUSE_PORT"],
    }
    # Frozen where the supervisor begins with the tables.
    program = (
        "import os, signal\n"
        "from warehouse import run\n"
        "def freeze(settings, apply=run.apply_schema):\n"
        f"    os.kill({server.process.pid}, signal.SIGSTOP)\n"
        "    print('frozen', flush=True)\n"
        "    apply(settings)\n"
        "run.apply_schema = freeze\n"
        "run.main()\n"
    )
    output = tmp_path / "output"
    with output.open("wb") as file:
        starting = subprocess.Popen(
            [sys.executable, "-c", program], env=environ, cwd=PROJECT_DIR, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: "frozen" in output.read_text(), 30)
        time.sleep(0.5)
        starting.terminate()
        assert starting.wait(20) == 0, output.read_text()
    finally:
        starting.kill()
        starting.wait(10)
        server.stop(signal.SIGKILL)


def test_two_settings_with_the_same_port_are_refused(tmp_path: Path) -> None:
    port = str(free_port())
    assert "are both" in refusal("warehouse.run", environment(tmp_path) | {"API_PORT": port, "DAGSTER_PORT": port})


def test_a_clickhouse_that_is_not_there_is_named(tmp_path: Path) -> None:
    environ = environment(tmp_path) | {"CLICKHOUSE_HOST": "127.0.0.1"}
    assert f"127.0.0.1:{environ['CLICKHOUSE_PORT']}" in refusal("warehouse.run", environ)


def test_a_password_for_the_embedded_clickhouse_is_refused(tmp_path: Path) -> None:
    """Its engine could not log in itself."""
    for name in ("CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD"):
        environ = environment(tmp_path) | {name: "other"}
        for module in ("warehouse.run", "warehouse.embedded"):
            assert "CLICKHOUSE_HOST" in refusal(module, environ)


def test_a_clickhouse_that_refuses_the_login_is_told_apart(server: EmbeddedServer, tmp_path: Path) -> None:
    connect(server.settings).close()
    environ = environment(tmp_path) | {
        "CLICKHOUSE_HOST": "127.0.0.1",
        "CLICKHOUSE_PORT": str(server.settings.clickhouse_port),
        "CLICKHOUSE_PASSWORD": "wrong",
    }
    assert "CLICKHOUSE_PASSWORD" in refusal("warehouse.run", environ)


@pytest.mark.timeout(240)
def test_a_server_that_is_there_is_used_and_left_running(server: EmbeddedServer, tmp_path: Path) -> None:
    """The embedded server plays the part of a server whose users cannot be changed by SQL."""
    environ = environment(tmp_path / "data") | {
        "CLICKHOUSE_HOST": "127.0.0.1",
        "CLICKHOUSE_PORT": server.environ["CLICKHOUSE_PORT"],
        "CLICKHOUSE_DATABASE": "elsewhere",
    }
    copy = Copy(environ, tmp_path / "output")
    copy.start()
    try:
        assert copy.pid_of("clickhouse") is None
        assert "elsewhere_serve could not be made" in copy.text()
        assert copy.events() == 0  # samples are for a fresh embedded database only
    finally:
        copy.process.terminate()
        copy.process.wait(60)
    assert connect(server.settings).command("select 1") == 1
