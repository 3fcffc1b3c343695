"""The Celery application, for who sends tasks, and for ``stress.scenarios.celery_tasks``.

Its broker and its results are files, so that no other server is needed.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

#: The name of the task.
QUESTION = "question"
#: Seconds between two looks for new tasks.
INTERVAL = 0.005


class Channel(filesystem.Channel):  # type: ignore[misc]
    """Messages that nobody sees before they are whole.

    A message of kombu's own has its name first and its contents later; who takes it in between
    ends by an error.
    """

    def _put(self, queue: str, payload: Any, **options: Any) -> None:
        name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg"
        path = os.path.join(self.data_folder_out, name)
        with open(f"{path}.new", "w") as file:
            file.write(dumps(payload))
        os.rename(f"{path}.new", path)


class Transport(filesystem.Transport):  # type: ignore[misc]
    """Files that a worker looks for in its event loop, as it does with other brokers.

    Without one each child takes its tasks from one pipe under one lock, and whoever is killed
    while it waits there keeps the lock for ever: then no child gets anything.
    """

    Channel = Channel
    implements = filesystem.Transport.implements.extend(asynchronous=True)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        loop.call_repeatedly(INTERVAL, self._take, connection)

    def _take(self, connection: Any) -> None:
        try:
            while True:
                self.drain_events(connection, timeout=0)
        except TimeoutError:
            return


TRANSPORT_ALIASES["whole-files"] = f"{__name__}:Transport"


def make_app(folder: Path) -> Celery:
    """On files in that folder, which is made."""
    queue, done, control, results = (folder / name for name in ("q", "done", "control", "results"))
    for each in (queue, done, control, results):
        each.mkdir(parents=True, exist_ok=True)
    return Celery(
        "stress",
        set_as_current=False,
        broker="whole-files://",
        backend=f"file://{results}",
        broker_transport_options={
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            "processed_folder": str(done),
            "store_processed": True,
            "control_folder": str(control),
        },
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
    )
