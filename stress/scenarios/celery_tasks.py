"""What ``celery worker`` runs. The pool is a module's, and there before the children are forked."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown, worker_shutdown

from stress.scenarios.celery_app import QUESTION, make_app
from stress.trial.brief import Brief
from stress.trial.desk import Desk, guard

desk = Desk(Brief.here())
guard(desk.brief)
app = make_app(Path(desk.brief.folder) / "celery")


def question(token: str) -> dict[str, Any]:
    return desk.answer(token, Random(f"{desk.brief.seed} {token}")).as_dict()


def begin(**_: Any) -> None:
    desk.enter()


def end(**_: Any) -> None:
    desk.leave()


def close(**_: Any) -> None:
    """In the parent, when all children have ended."""
    desk.pool.close(desk.brief.timeout)


app.task(name=QUESTION)(question)
worker_process_init.connect(begin)
worker_process_shutdown.connect(end)
worker_shutdown.connect(close)
