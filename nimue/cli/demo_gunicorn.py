"""The settings of the gunicorn that `nimue demo` starts. gunicorn reads this module by name."""

import os
from typing import Any

bind = "fd://" + os.environ["NIMUE_DEMO_SOCKET"]
workers = int(os.environ["NIMUE_DEMO_WORKERS"])
threads = int(os.environ["NIMUE_DEMO_THREADS"])
worker_class = "gthread"
preload_app = True
keepalive = 60
graceful_timeout = 5
control_socket_disable = True


def on_exit(server: Any) -> None:
    from nimue.cli import demo_app

    demo_app.close()
