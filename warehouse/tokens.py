"""The API's static tokens and revoked JWTs, kept in ``$DATA_DIR/tokens.db``: ``python -m warehouse.tokens --help``.

SQLite, not ClickHouse: events are taken in while ClickHouse is away, and so their tokens have to be known. Every
request looks its token up, so that what is revoked is refused at once by every worker.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dotenv

from warehouse.settings import PROJECT_DIR, Settings, SettingsError

# Kinds of scopes that name what they are for: PIPES:READ:events_by_type. Beside them there is ADMIN, for everything.
KINDS = ("PIPES:READ", "DATASOURCES:READ", "DATASOURCES:APPEND")
ADMIN = "ADMIN"
RESOURCE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}", re.ASCII)
# A writer holds the file for milliseconds.
_LOCKED_SECONDS = 5
# The journal is a rollback journal: WAL would let readers pass a writer, who is here once in a while, and would need
# two more files beside this one, writable by every reader.
_SCHEMA = """
create table if not exists tokens (
    name text primary key,
    hash blob not null unique,
    scopes text not null,
    created_at text not null
) strict;
create table if not exists revoked_jwts (
    jwt text primary key,
    revoked_at text not null
) strict, without rowid;
"""


class TokenError(Exception):
    """A request about tokens that cannot be done; the message says why and what can."""


@dataclass(frozen=True)
class Token:
    """A static token, without its secret.

    Attributes:
        scopes: such as ``PIPES:READ:events_by_type``.
        created_at: UTC, ISO 8601.
    """

    name: str
    scopes: tuple[str, ...]
    created_at: str


class Tokens:
    """The file of tokens; made when it is not there, readable by its owner only.

    It is opened anew for each piece of work: that costs 0.2 ms, needs nothing to be shared between
    threads and processes, and a file that was restored from a backup counts at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with self._open() as database:
            database.executescript(_SCHEMA)

    def create(self, name: str, scopes: Sequence[str]) -> str:
        """Make a token and return it: the only time that it can be seen.

        Raises:
            TokenError: the name is taken or unusable, or a scope is not one.
        """
        if not _NAME.fullmatch(name):
            raise TokenError(f"{name!r} is no name for a token; it takes letters, digits and _ . @ -, at most 128.")
        if not scopes:
            raise TokenError(f"A token without a scope can do nothing; {_scopes_in_words()}.")
        for scope in scopes:
            kind, _, resource = scope.rpartition(":")
            if scope != ADMIN and not (kind in KINDS and RESOURCE.fullmatch(resource)):
                raise TokenError(f"{scope!r} is no scope; {_scopes_in_words()}.")
        token = f"p.{secrets.token_urlsafe(32)}"
        row = (name, _hash(token), json.dumps(sorted(set(scopes))), _now())
        try:
            with self._open() as database:
                database.execute("insert into tokens values (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise TokenError(f"There is a token named {name} already; revoke it first, or take another name.") from None
        return token

    def find(self, token: str) -> Token | None:
        """The token that this text is, if it is one."""
        # Found by its hash: how long that takes tells of the hash, from which nobody gets any nearer to a token.
        with self._open() as database:
            found = database.execute("select name, scopes, created_at from tokens where hash = ?", (_hash(token),))
            return next(_tokens(found), None)

    def all(self) -> list[Token]:
        """Every static token, by name."""
        with self._open() as database:
            return list(_tokens(database.execute("select name, scopes, created_at from tokens order by name")))

    def revoke(self, name: str) -> None:
        """Forget a static token; the next request with it is refused.

        Raises:
            TokenError: there is none of that name.
        """
        with self._open() as database:
            if database.execute("delete from tokens where name = ?", (name,)).rowcount:
                return
        names = ", ".join(token.name for token in self.all()) or "none"
        raise TokenError(f"There is no token named {name}; there are: {names}. A JWT is revoked with revoke-jwt.")

    def revoke_jwt(self, jwt: str) -> None:
        """Refuse every JWT whose ``jti`` or ``name`` this is, from the next request on."""
        with self._open() as database:
            database.execute("insert or ignore into revoked_jwts values (?, ?)", (jwt, _now()))

    def restore_jwt(self, jwt: str) -> None:
        """Take a revocation back.

        Raises:
            TokenError: it is not revoked.
        """
        with self._open() as database:
            if not database.execute("delete from revoked_jwts where jwt = ?", (jwt,)).rowcount:
                raise TokenError(f"No JWT is revoked by {jwt}.")

    def revoked_jwts(self) -> list[tuple[str, str]]:
        """What JWTs are revoked by, and since when (UTC, ISO 8601)."""
        with self._open() as database:
            return database.execute("select jwt, revoked_at from revoked_jwts order by jwt").fetchall()

    def is_revoked(self, *ids: str) -> bool:
        """Whether JWTs with one of these as ``jti`` or ``name`` are revoked."""
        with self._open() as database:
            found = database.execute(
                "select 1 from revoked_jwts where jwt in (select value from json_each(?))", (json.dumps(ids),)
            )
            return found.fetchone() is not None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Not made anew when it is gone: without it nobody can tell what was revoked.
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_LOCKED_SECONDS)) as database, database:
            yield database


def open_tokens(settings: Settings) -> Tokens:
    """The tokens of the project's ``DATA_DIR``."""
    return Tokens(settings.data_dir / "tokens.db")


def _tokens(rows: sqlite3.Cursor) -> Iterator[Token]:
    return (Token(name, tuple(json.loads(scopes)), created_at) for name, scopes, created_at in rows)


def _hash(token: str) -> bytes:
    # No slow hash: it makes guessing dear where people choose the secret. This one is 256 random bits.
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _scopes_in_words() -> str:
    return f"there are {ADMIN}, {', '.join(f'{kind}:<name>' for kind in KINDS)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m warehouse.tokens", description=__doc__.partition(",")[0] + ".")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a token and print it, once")
    create.add_argument("name")
    create.add_argument("--scope", action="append", default=[], help=f"may be repeated; {_scopes_in_words()}")
    commands.add_parser("list", help="static tokens and revoked JWTs; no secrets")
    for command, what in (
        ("revoke", "refuse a static token from now on"),
        ("revoke-jwt", "refuse JWTs with this jti or name from now on"),
        ("restore-jwt", "take a revoke-jwt back"),
    ):
        commands.add_parser(command, help=what).add_argument("name")
    arguments = parser.parse_args()
    dotenv.load_dotenv(PROJECT_DIR / ".env")
    try:
        tokens = open_tokens(Settings.from_env())
        if arguments.command == "create":
            print(tokens.create(arguments.name, arguments.scope))
        elif arguments.command == "list":
            for token in tokens.all():
                print(f"{token.created_at}  {token.name}  {' '.join(token.scopes)}")
            for jwt, revoked_at in tokens.revoked_jwts():
                print(f"{revoked_at}  {jwt}  JWT, revoked")
        elif arguments.command == "revoke":
            tokens.revoke(arguments.name)
        elif arguments.command == "revoke-jwt":
            tokens.revoke_jwt(arguments.name)
        else:
            tokens.restore_jwt(arguments.name)
    except (TokenError, SettingsError) as error:
        sys.exit(str(error))
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"The tokens cannot be read or written: {error}.")


if __name__ == "__main__":
    main()
