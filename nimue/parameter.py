"""A pool's parameters as its properties: all can be read, some can be set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from nimue.callback import HealthCheck

if TYPE_CHECKING:
    from typing_extensions import Never, Self

T = TypeVar("T")


class Parameter(property, Generic[T]):
    """What the pool's settings say now; not to be set."""

    def __init__(self, name: str, told: str) -> None:
        super().__init__(attrgetter(f"_state.settings.{name}"), self._setter(name))
        self.__doc__ = told

    def _setter(self, name: str) -> Any:
        return None

    if TYPE_CHECKING:

        @overload
        def __get__(self, pool: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(self, pool: object, owner: type | None = None, /) -> T: ...
        def __get__(self, pool: object, owner: type | None = None, /) -> Any: ...
        def __set__(self, pool: Any, value: Never, /) -> None: ...


class Settable(Parameter[T]):
    """One that can be changed on a living pool, and is checked as in the constructor."""

    def _setter(self, name: str) -> Any:
        return lambda pool, value: pool._change(**{name: value})

    if TYPE_CHECKING:

        def __set__(self, pool: Any, value: T, /) -> None: ...


class Parameters:
    """The part of a pool's face that shows what it was told."""

    __slots__ = ()

    connfunc = Parameter[Callable[..., Any]](
        "connfunc", "The callable that returns a new connection."
    )
    connargs = Parameter[Sequence[Any]](
        "connargs", "The arguments that ``connfunc`` is called with."
    )
    connkwargs = Parameter[Mapping[str, Any]](
        "connkwargs", "The keyword arguments that ``connfunc`` is called with."
    )
    poolinit = Parameter[int | None](
        "poolinit", "How many connections the constructor opened; None: ``poolmin``."
    )
    poolmin = Settable[int](
        "poolmin", "Connections kept open, in each process. Settable, from 0 to ``poolmax``."
    )
    poolmax = Settable[int](
        "poolmax",
        "Connections at most, per process. Settable, from 1 and ``poolmin``; what is idle beyond "
        "is closed.",
    )
    cleanup_interval = Settable[float](
        "cleanup_interval", "Seconds between rounds of background checks. Settable, above 0."
    )
    idle_timeout = Settable[float](
        "idle_timeout",
        "Seconds after which an unused connection beyond ``poolmin`` is closed. Settable.",
    )
    healthcheck_on_getconnection = Parameter[bool](
        "healthcheck_on_getconnection", "Whether a connection is checked before it is given out."
    )
    healthcheck_callback = Parameter[HealthCheck]("healthcheck_callback", "The health check.")
    timeout = Settable[float | None](
        "timeout", "Seconds that ``getconnection`` waits by default; None: for ever. Settable."
    )
    max_waiting = Settable[int | None](
        "max_waiting", "More waiting threads than this are refused; None: no limit. Settable."
    )
    max_lifetime = Settable[float | None](
        "max_lifetime",
        "Seconds after which a connection is replaced; None: never. Settable, for those that are "
        "opened from then on.",
    )
    healthcheck_idle = Settable[float](
        "healthcheck_idle",
        "Seconds; a connection used within them is given out unchecked. Settable.",
    )
    leak_timeout = Settable[float | None](
        "leak_timeout",
        "Seconds after which a connection still out is reported; None: never. Settable.",
    )
    max_connecting = Settable[int](
        "max_connecting", "``connect()`` calls at once, per process. Settable, from 1."
    )
    max_connecting_total = Parameter[int | None](
        "max_connecting_total",
        "``connect()`` calls at once, over all processes that share ``totalmax``; None: no limit.",
    )
    on_connect = Parameter[Callable[[Any], object] | None](
        "on_connect", "Called with each new connection of the driver's, to set up its session."
    )
    on_return = Parameter[Callable[[Any], object] | None](
        "on_return", "Called with each connection that comes back, to reset its session."
    )
