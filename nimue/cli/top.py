"""`nimue top`: who holds the permits of all semaphores, and what their pools tell."""

import json
import signal
import sys
import time
from dataclasses import asdict, dataclass

from nimue.cli import top_screen
from nimue.cli.interrupt import Interrupted, Interrupts
from nimue.cli.top_gather import Picture, UnknownName, look
from nimue.error import NimueError

#: Seconds from one picture to the next, if a picture takes no more than a third of that. It is
#: the list of sockets that takes time, some milliseconds for each process.
EVERY, SHARE = 0.5, 3


@dataclass(frozen=True)
class Options:
    name: str | None = None
    directory: str | None = None
    once: bool = False
    json: bool = False


def run(options: Options) -> int:
    """Show it; the exit status."""
    try:
        if options.json or options.once or not top_screen.is_terminal():
            return show_once(options)
        return show_on(options)
    except (UnknownName, NimueError, OSError) as error:
        print(f"nimue top: {error}", file=sys.stderr)
        return 2


def show_once(options: Options) -> int:
    picture = look(options.directory, options.name)
    if options.json:
        print(json.dumps(asdict(picture), indent=2))
    else:
        top_screen.show(picture)
    return 0


def show_on(options: Options) -> int:
    """Until Ctrl-C, which is how one ends it."""
    with Interrupts() as interrupts:
        try:
            picture = look(options.directory, options.name)
            if not picture.semaphores:
                top_screen.show(picture)
                return 0
            watch(options, picture, interrupts)
        except Interrupted as stop:
            return 0 if stop.signum == signal.SIGINT else 128 + stop.signum
    return 0


def watch(options: Options, picture: Picture, interrupts: Interrupts) -> None:
    screen = top_screen.live()
    try:
        with interrupts.held():
            screen.start()
        spent = 0.0
        while True:
            screen.update(top_screen.Page(picture), refresh=True)
            time.sleep(max(EVERY - spent, spent * (SHARE - 1)))
            began = time.monotonic()
            picture = again(options, picture)
            spent = time.monotonic() - began
            interrupts.check()
    finally:
        screen.stop()


def again(options: Options, before: Picture) -> Picture:
    """The next picture. A semaphore that was there and has gone is no mistake of the user's."""
    try:
        return look(options.directory, options.name)
    except UnknownName:
        return Picture(before.directory, ())
