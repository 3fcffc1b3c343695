"""What the user may choose, in one frozen record that has been checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nimue.backoff import chance
from nimue.callback import HealthCheck
from nimue.error import NimueInvalidParameterValue

#: The most permits, and turns to connect, that there can be; see the layout of the semaphore.
SLOTS, TURNS = 1024, 256

#: The part by which lifetimes differ, so that connections do not retire together.
JITTER = 0.1


def refuse(parameter: str, value: object, allowed: str) -> NimueInvalidParameterValue:
    """The one form in which a bad parameter is refused."""
    return NimueInvalidParameterValue(f"{parameter} must be {allowed}, not {value!r}")


def whole(parameter: str, value: object, least: int, allowed: str) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise refuse(parameter, value, allowed)


def seconds(parameter: str, value: object, allowed: str, *, zero: bool = True) -> None:
    """Refuse anything but a finite number of seconds, positive or, where allowed, zero."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < 0
        or (value == 0 and not zero)
    ):
        raise refuse(parameter, value, allowed)


class _OwnTimeout:
    """The pool's own ``timeout``; shown so in signatures."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Any = _OwnTimeout()


class Unsaid(int):
    """A number that nobody has given, and that can be told from the same number given."""


POOLMIN = Unsaid(10)


def poolmin_beside(poolmax: int, poolmin: int) -> int:
    """``poolmin`` as given; if it was not, it makes way for a ``poolmax`` below it."""
    if poolmin is not POOLMIN:
        return poolmin
    return min(int(poolmin), poolmax) if isinstance(poolmax, int) else int(poolmin)


class Settings(NamedTuple):
    """One pool's parameters, as they were given. ``checked`` tells whether they can be."""

    connfunc: Callable[..., Any]
    connargs: Sequence[Any]
    connkwargs: Mapping[str, Any]
    poolinit: int | None
    poolmin: int
    poolmax: int
    cleanup_interval: float
    idle_timeout: float
    healthcheck_on_getconnection: bool
    healthcheck_callback: HealthCheck
    timeout: float | None
    max_waiting: int | None
    max_lifetime: float | None
    healthcheck_idle: float
    leak_timeout: float | None
    max_connecting: int
    max_connecting_total: int | None
    on_connect: Callable[[Any], object] | None
    on_return: Callable[[Any], object] | None

    def checked(self) -> Settings:
        """These settings, if all of them are allowed.

        Raises:
            NimueInvalidParameterValue: names the parameter, its value and what is allowed. Never
                repeats ``connargs`` or ``connkwargs``, which may hold a password.
        """
        self._check_callables()
        self._check_sizes()
        self._check_times()
        return self

    def changed(self, **parameters: Any) -> Settings:
        """The same settings but for these, checked together."""
        return self._replace(**parameters).checked()

    def __repr__(self) -> str:
        return f"<Settings: poolmin={self.poolmin}, poolmax={self.poolmax}>"

    def _check_callables(self) -> None:
        if not callable(self.connfunc):
            kind = type(self.connfunc).__name__
            raise NimueInvalidParameterValue(
                f"connfunc must be a callable that returns a connection, not a {kind}"
            )
        if not isinstance(self.connargs, Sequence) or isinstance(self.connargs, str | bytes):
            kind = type(self.connargs).__name__
            raise NimueInvalidParameterValue(f"connargs must be a list or tuple, not a {kind}")
        if not isinstance(self.connkwargs, Mapping):
            kind = type(self.connkwargs).__name__
            raise NimueInvalidParameterValue(f"connkwargs must be a dict, not a {kind}")
        if not callable(self.healthcheck_callback):
            raise refuse("healthcheck_callback", self.healthcheck_callback, "a callable")
        for parameter in ("on_connect", "on_return"):
            value = getattr(self, parameter)
            if value is not None and not callable(value):
                raise refuse(parameter, value, "a callable or None")

    def _check_sizes(self) -> None:
        whole("poolmax", self.poolmax, 1, "a whole number of at least 1")
        whole("poolmin", self.poolmin, 0, f"a whole number from 0 to poolmax ({self.poolmax})")
        if self.poolmin > self.poolmax:
            raise refuse(
                "poolmin", self.poolmin, f"a whole number from 0 to poolmax ({self.poolmax})"
            )
        if self.poolinit is not None:
            between = f"None or a whole number from poolmin ({self.poolmin}) to poolmax"
            whole("poolinit", self.poolinit, 0, f"{between} ({self.poolmax})")
        whole("max_connecting", self.max_connecting, 1, "a whole number of at least 1")
        if self.max_connecting_total is not None:
            allowed = f"None or a whole number from 1 to {TURNS}"
            whole("max_connecting_total", self.max_connecting_total, 1, allowed)
            if self.max_connecting_total > TURNS:
                raise refuse("max_connecting_total", self.max_connecting_total, allowed)
        if self.max_waiting is not None:
            whole("max_waiting", self.max_waiting, 0, "None or a whole number of at least 0")

    def check_poolinit(self) -> None:
        """Refuse a ``poolinit`` outside the limits; they bind it only when a pool is made."""
        if self.poolinit is not None and not self.poolmin <= self.poolinit <= self.poolmax:
            raise refuse(
                "poolinit",
                self.poolinit,
                f"None or a whole number from poolmin ({self.poolmin}) to poolmax ({self.poolmax})",
            )

    def _check_times(self) -> None:
        seconds(
            "cleanup_interval", self.cleanup_interval, "a number of seconds above 0", zero=False
        )
        seconds("idle_timeout", self.idle_timeout, "a number of seconds, 0 or more")
        seconds("healthcheck_idle", self.healthcheck_idle, "a number of seconds, 0 or more")
        for parameter in ("max_lifetime", "leak_timeout"):
            value = getattr(self, parameter)
            if value is not None:
                seconds(parameter, value, "None or a number of seconds above 0", zero=False)
        if self.timeout is not None:
            check_timeout(self.timeout)

    def lifetime(self) -> float:
        """Seconds that a connection may live; each has its own."""
        return (self.max_lifetime or math.inf) * (1.0 - JITTER * chance())

    def unchecked_for(self) -> float:
        """Seconds after its last use within which a connection is given out without a check."""
        return self.healthcheck_idle if self.healthcheck_on_getconnection else math.inf


def check_totalmax(value: object) -> None:
    """Refuse a limit across processes that cannot be one."""
    allowed = f"None or a whole number from 1 to {SLOTS}"
    whole("totalmax", value, 1, allowed)
    if isinstance(value, int) and value > SLOTS:
        raise refuse("totalmax", value, allowed)


def check_timeout(value: object) -> None:
    """Refuse a timeout that is neither None nor a number of seconds."""
    if value is not None:
        seconds("timeout", value, "None or a number of seconds, 0 or more")
