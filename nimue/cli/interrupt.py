"""Ctrl-C, SIGTERM and SIGHUP for a command that must clean up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """A signal asked this command to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupts:
    """The first signal becomes one `Interrupted` in the main thread; all later ones are ignored.

    While held, a signal waits for the end of the hold: so nothing can be started without being
    noted for the clean-up, and no clean-up is cut short.

    Raises: Interrupted, anywhere in the block, except while held.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._holds = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for signum in self.SIGNALS:
            # A background job of a plain shell has SIGINT ignored: SIGINT to it is still meant.
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            if not self._holds:
                raise Interrupted(signum)

    def check(self) -> None:
        """Raise a signal that was held, or that a finalizer swallowed."""
        if self.signum is not None and not self._holds:
            raise Interrupted(self.signum)

    def hold(self) -> None:
        """Ignore signals from here to the end."""
        self._holds += 1

    @contextmanager
    def held(self) -> Iterator[None]:
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()


@contextmanager
def bounded(seconds: float, error: Exception) -> Iterator[None]:
    """Raise `error` in the main thread when the block takes longer than `seconds`."""

    def expire(signum: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
