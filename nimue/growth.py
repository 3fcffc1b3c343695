"""How many connections to open, and when: only while somebody lacks one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimue.work import CHECK_STUCK, CONNECT_STUCK, Task, Work

if TYPE_CHECKING:
    from nimue.state import State


def lack_locked(state: State, now: float, wish: int) -> int:
    """How many more are wanted than will soon be checked."""
    soon = sum(1 for entry in state.checking if now - entry.busy_since < CHECK_STUCK)
    return len(state.waiters) + wish - soon


def grow_locked(state: State, now: float, wish: int) -> list[Work]:
    """What is to be opened now: for those who wait, and, in a refill, up to ``poolmin``."""
    settings = state.settings
    under_way = sum(1 for entry in state.connecting if now - entry.busy_since < CONNECT_STUCK)
    lack = lack_locked(state, now, wish) - under_way - (1 if wish and state.idle else 0)
    if state.refilling:
        short = settings.poolmin - len(state.entries) + len(state.closing)
        state.refilling = short > 0
        lack = max(lack, short)
    if lack <= 0 or now < state.backoff.retry_at:
        return []
    room = min(settings.poolmax - len(state.entries), settings.max_connecting - under_way)
    return [Work(Task.CONNECT, state.birth_locked(now)) for _ in range(min(lack, room))]
