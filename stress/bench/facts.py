"""The facts about the fake driver, as nimue's psycopg2 file gives them about psycopg2."""

from __future__ import annotations

from nimue.drivers.base import Driver, Raw
from stress.bench.fake import IDLE, READY, SocketConnection


class FakeDriver(Driver):
    """At a release libpq's and psycopg2's own states are read, two attributes, as for psycopg2."""

    packages = ("stress",)

    def fileno(self, raw: Raw) -> int | None:
        return raw.fileno() if isinstance(raw, SocketConnection) else None

    def in_transaction(self, raw: Raw) -> bool | None:
        if raw.info.transaction_status == IDLE and raw.status == READY:
            return False
        return None if raw.closed else True

    def is_closed(self, raw: Raw) -> bool:
        return bool(raw.closed)
