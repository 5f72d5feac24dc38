"""The page of the API, in a real browser."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import brotli
import pytest
from clickhouse_connect.driver.client import Client
from conftest import EmbeddedServer, environment
from playwright.sync_api import Browser, Request, sync_playwright
from test_serve_server import TOKEN, Api

PACKED = Path(sys.prefix) / "clients/node_modules/@sparticuz/chromium/bin"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium from the npm package that carries it, with the libraries and the font that a bare machine lacks."""
    if not PACKED.is_dir():
        pytest.fail(f"{PACKED} is not there: `make .venv/clients/node_modules/.package-lock.json` installs it.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        executable = home / "chromium"
        executable.write_bytes(brotli.decompress((PACKED / "chromium.br").read_bytes()))
        executable.chmod(0o755)
        for name in ("al2023", "swiftshader", "fonts"):
            content = brotli.decompress((PACKED / f"{name}.tar.br").read_bytes())
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(home)  # noqa: S202 - pinned by package-lock.json; filters came with Python 3.11.4
        fonts = f"<fontconfig><dir>{home}/fonts</dir><cachedir>{home}/cache</cachedir></fontconfig>"
        (home / "fonts.conf").write_text(fonts)
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox"],  # Chromium's refuses root, which CI often is
            env={"HOME": folder, "LD_LIBRARY_PATH": f"{home}/lib", "FONTCONFIG_FILE": f"{home}/fonts.conf"},
        )
        yield browser
        browser.close()


@pytest.fixture
def api(server: EmbeddedServer, client: Client, tmp_path: Path) -> Iterator[Api]:
    view = f"{server.settings.api_database}.greetings"
    words = json.dumps({"description": "Greets.", "parameters": {"who": {"example": "world"}}})
    client.command(
        f"create or replace view {view} as "
        f"select concat('hello ', {{who:Nullable(String)}}) as greeting comment '{words}'"
    )
    api = Api({**server.environ, "API_PORT": environment(tmp_path)["API_PORT"]}, tmp_path / "api.log")
    api.start()
    yield api
    api.stop()
    client.command(f"drop view {view}")


def test_a_person_enters_a_token_and_tries_an_endpoint(browser: Browser, api: Api) -> None:
    page = browser.new_page()
    page.set_default_timeout(20_000)
    requests: list[Request] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request))
    page.on("console", lambda message: complaints.append(message.text))  # where a violated policy is told
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{api.port}/docs")

    # Without a token: how endpoints are called, and none of them.
    page.locator("#operations-Endpoints-call_endpoint").wait_for()
    greetings = page.locator("#operations-Endpoints-greetings")
    assert greetings.count() == 0

    page.locator("button.authorize").click()
    page.locator("#auth-bearer-value").fill(TOKEN)
    page.locator(".auth-container", has_text="Bearer").get_by_role("button", name="Apply credentials").click()
    page.locator(".btn-done").first.click()
    greetings.click()
    greetings.get_by_role("button", name="Try it out").click()
    greetings.get_by_role("button", name="Execute").click()
    answer = greetings.locator(".live-responses-table")
    answer.wait_for()
    assert "hello world" in answer.inner_text()

    page.locator("button.authorize").click()
    page.get_by_role("button", name="Remove authorization").first.click()
    greetings.wait_for(state="detached")

    assert {request.url.split("/")[2] for request in requests if not request.url.startswith("data:")} == {
        f"127.0.0.1:{api.port}"
    }
    assert complaints == []
    assert TOKEN not in " ".join(request.url for request in requests)
    page.close()
