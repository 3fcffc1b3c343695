"""Which process this is, for what must not be taken over by a child, whoever forked it."""

from __future__ import annotations

import threading

from nimue.process import Identity, identify_process, make_door


class Epoch:
    """The life of one process. All of its threads see the same object, and no child does."""

    __slots__ = ("attaching", "depth", "identity")

    def __init__(self, depth: int, identity: Identity) -> None:
        self.depth = depth
        self.identity = identity
        #: Held while a semaphore is attached: one object for each file in a process.
        self.attaching = threading.RLock()


_door = make_door()
_here = Epoch(0, identify_process())
_door[0] = 1
#: What the threads of a new child agree on, lock-free. No ancestor of this process has the key.
_agreed: dict[tuple[int, Identity], Epoch] = {}


def here() -> Epoch:
    """The running process's epoch."""
    global _here
    if _door[0]:
        return _here
    known = _here
    identity = identify_process()
    if known.identity != identity:
        key = known.depth + 1, identity
        _here = _agreed.setdefault(key, Epoch(*key))
    _door[0] = 1  # last: whoever reads 1 also finds the new epoch
    return _here
