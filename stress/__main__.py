"""``python -m stress``: say what there is; ``python -m stress <name>``: do it."""

from __future__ import annotations

import importlib
import sys

#: What can be run: a module here with ``main(argv) -> int``, and what it does in a line.
COMMANDS = {
    "bench": "nimue against its peers in one run, with a verdict: pools, or shared semaphores",
    "storm": "a thousand kills of processes that share a limit, with an oracle and a verdict",
}


def main(argv: list[str]) -> int:
    """Run the command that is named first; without one, list them."""
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print("python -m stress <command> [options]\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:<10} {summary}")
        print("\npython -m stress <command> --help says more.")
        return 0
    if argv[0] not in COMMANDS:
        print(f"stress: no command {argv[0]!r}; there is {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    status = importlib.import_module(f"stress.{argv[0]}").main(argv[1:])
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
