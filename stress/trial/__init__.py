"""One trial: a scenario's processes at work on a server, what befalls them, and an oracle.

::

    brief    what all processes are told            desk     what one does at a question
    pools    nimue, its peers, and planted faults   dialects what to say to which server
    diary    who asked what, and what came of it    record   all that was seen, as plain data
    faults   what happens when, drawn from a seed   tickets  faults that a process does itself
    oracle   sessions, ledger, remains              verdict  what was asked for, and what was seen
    course   from start to end

What a worker imports (brief, desk, pools, dialects, tickets, ``stress.diary``) imports no nimue by
itself: a peer is tried in an environment of its own.
"""
