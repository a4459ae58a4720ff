"""Database work of the asynchronous request path: few threads, persistent connections.

Django's asynchronous ORM is one thread hop per query. Here a whole unit of work is one hop into
a small executor whose threads keep their connections; nothing is held between two units.
"""

import asyncio
import select
import sqlite3
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache
from typing import Any, cast

from django.db import InterfaceError, OperationalError, connection, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault

type Parameter = int | str | uuid.UUID | datetime

# By PostgreSQL's classes of SQLSTATE: a connection that broke, a server that stops, starts, or has
# no room for another connection (PostgreSQL 18, "PostgreSQL Error Codes", read 28 November 2026).
_AWAY_STATES = ("08", "53", "57P")
_AWAY_ON_SQLITE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
)


def is_away(error: BaseException) -> bool:
    """Return whether the error means that the database cannot be used now, whatever is asked."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    match error.__cause__:
        case sqlite3.Error() as cause:
            # The lowest byte is the kind, the others say more.
            return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _AWAY_ON_SQLITE
        case cause:
            # Without a state it is the client's own: no connection, or one that is lost.
            state = getattr(cause, "sqlstate", None)
            return state is None or state.startswith(_AWAY_STATES)


class DatabaseThreads:
    """Runs units of database work on `threads` threads, each with its own connection."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="db")
        self._opened: set[BaseDatabaseWrapper] = set()

    async def run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work(*args, **kwargs)` returns; its exceptions pass through."""

        def unit() -> T:
            self._opened.add(connections["default"])
            # One that failed may even be left within a transaction that is never committed.
            if connection.errors_occurred or _has_news(connection):
                connection.close_if_unusable_or_obsolete()
            return work(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, unit)

    def close(self) -> None:
        """Wait for running units, then close every connection the threads had opened."""
        self._executor.shutdown(wait=True)
        for opened in self._opened:
            opened.inc_thread_sharing()
            opened.close()
        self._opened.clear()


def execute(sql: str, *parameters: Parameter) -> int:
    """Run one statement in the current transaction and return how many rows it changed.

    For the guarded updates of the request path, which Django would compile anew on each request at
    four times the cost. UUIDs and times become what the database stores.
    """
    with connection.cursor() as cursor:
        cursor.execute(sql, [_stored(one) for one in parameters])
        return int(cursor.rowcount)


def fetch(sql: str, *parameters: Parameter) -> tuple[Any, ...] | None:
    """Run one statement that returns a row, as execute() does; None when there is none."""
    with connection.cursor() as cursor:
        cursor.execute(sql, [_stored(one) for one in parameters])
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row


def insert(row: models.Model) -> None:
    """Insert a new row; what the database fills in itself is not read back.

    `save()` without its signals and checks, and with its SQL made once: a quarter of the cost.
    """
    fields = [
        field
        for field in row._meta.concrete_fields
        if not isinstance(value := getattr(row, field.attname), DatabaseDefault)
        and not (field.primary_key and value is None)
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            _insert_sql(type(row), tuple(field.column for field in fields)),
            [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields],
        )
    row._state.adding, row._state.db = False, connection.alias


@cache
def _insert_sql(model: type[models.Model], columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    places = ", ".join(["%s"] * len(columns))
    return f'INSERT INTO "{model._meta.db_table}" ({names}) VALUES ({places})'


def update(row: models.Model, names: tuple[str, ...], *, where: str) -> int:
    """Write the named fields of a row if `where`, plain SQL, holds of it; return 0 or 1."""
    fields = [cast("models.Field[Any, Any]", row._meta.get_field(name)) for name in names]
    values = [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields]
    key = row._meta.pk.get_db_prep_save(row.pk, connection)
    with connection.cursor() as cursor:
        cursor.execute(_update_sql(type(row), names, where), [*values, key])
        return int(cursor.rowcount)


@cache
def _update_sql(model: type[models.Model], names: tuple[str, ...], where: str) -> str:
    columns = [cast("models.Field[Any, Any]", model._meta.get_field(name)).column for name in names]
    changes = ", ".join(f'"{column}" = %s' for column in columns)
    key = model._meta.pk.column
    return f'UPDATE "{model._meta.db_table}" SET {changes} WHERE "{key}" = %s AND {where}'


def _stored(value: Parameter) -> Any:
    match value:
        case uuid.UUID() if not connection.features.has_native_uuid_field:
            return value.hex
        case datetime():
            return connection.ops.adapt_datetimefield_value(value)
        case _:
            return value


def _has_news(database: BaseDatabaseWrapper) -> bool:
    """Return whether the server has something to say on an idle connection: mostly, goodbye.

    Asking the socket costs microseconds where Django's own check is a query on every unit of work.
    """
    if database.vendor != "postgresql" or database.connection is None:
        return False
    if database.connection.closed:
        return True
    # Not select(), which knows no descriptor above 1,023.
    waiting = select.poll()
    waiting.register(database.connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))
