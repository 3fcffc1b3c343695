"""``python -m stress``: say what there is; ``python -m stress <name>``: do it."""

from __future__ import annotations

import importlib
import sys

#: Modules here with ``main(argv) -> int``, and what each does in a line.
COMMANDS = {
    "all": "every scenario, with faults, for a short while; --quick: in under ten minutes",
    "soak": "one scenario for --minutes with every fault, watching for what grows",
    "compare": "nimue and its peers in one preforking set-up, and two public trials replayed",
    "storm": "a thousand kills of processes that share a limit, with an oracle and a verdict",
    "bench": "nimue against its peers in one run, with a verdict: pools, or shared semaphores",
}


def main(argv: list[str]) -> int:
    """Run the command or the scenario that is named first; without one, list them."""
    from stress.scenarios import SCENARIOS

    if not argv or argv[0] in {"-h", "--help", "help"}:
        _list()
        return 0
    if sys.platform != "linux":
        print(f"stress: needs the /proc of Linux; this is {sys.platform}", file=sys.stderr)
        return 2
    name, rest = argv[0], argv[1:]
    if name in SCENARIOS:
        return int(importlib.import_module("stress.run").main(name, rest))
    if name in COMMANDS:
        return int(importlib.import_module(f"stress.{name}").main(rest))
    there = ", ".join([*SCENARIOS, *COMMANDS])
    print(f"stress: no command {name!r}; there is {there}", file=sys.stderr)
    return 2


def _list() -> None:
    from stress.scenarios import SCENARIOS, scenario

    print("python -m stress <command> [options]\n\nOne set-up, under load, with any faults:\n")
    for name in SCENARIOS:
        print(f"  {name:<10} {scenario(name).summary}")
    print("\nAll of them, and beside the peers:\n")
    for name, summary in COMMANDS.items():
        print(f"  {name:<10} {summary}")
    print("\npython -m stress <command> --help says more.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
