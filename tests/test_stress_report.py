"""What is told of a trial: figures by hand, a page that a browser shows, a table while it runs."""

from __future__ import annotations

import bisect
import io
import json
import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nimue.cli.demo_verdict import Check
from stress.report import bins, svg, words
from stress.report.figures import figures, save
from stress.report.live import Live, verdict
from stress.report.marks import marks
from stress.report.page import write
from stress.report.scene import Scene, Scenes, Worker
from stress.trial.course import Plan
from stress.trial.record import Happening, Health, Look, Question, Record

pytestmark = pytest.mark.harness

NASTY = '<script>alert("1")</script> & \'$x$ [bold]'
RATES = {"kill": 0.5, "stop": 0.3, "fork": 2.0, "terminate": 1.0, "restart": 0.04, "cut": 0.1}


def record(**changes: Any) -> Record:
    """One with nothing in it."""
    empty = Record(
        scenario="gunicorn",
        variant="preload",
        contender="nimue",
        seed=7,
        seconds=10.0,
        versions={"Python": "3.11.7", "nimue": "0.1.0", "psycopg2": "2.9.13", "PostgreSQL": "18.1"},
        settings={"dialect": "pg8000", "totalmax": None, "fault": ["kill=0.5", "cut=1"], "on": 3},
        limit=6,
        poolmax=4,
    )
    return replace(empty, **changes)


class Made:
    """A trial drawn from a seed: workers that are killed and replaced, and what they did."""

    def __init__(self, seed: int, seconds: float, rate: float, looks: float, rates: float) -> None:
        self.dice, self.seconds = random.Random(seed), seconds
        self.happenings = sorted(
            (
                Happening(self.dice.uniform(0, seconds), kind, f"process {n}")
                for kind, often in RATES.items()
                for n in range(max(1, round(often * rates * seconds)))
            ),
            key=lambda one: one.at,
        )
        self.team = self._team()
        self.restarts = [one.at for one in self.happenings if one.kind == "restart"]
        self.questions = [self._question(n) for n in range(round(rate * seconds))]
        self.looks = [self._look(n * looks) for n in range(round(seconds / looks))]

    def _team(self) -> list[tuple[float, list[int]]]:
        """From when on which four."""
        pids, last, team = [4100, 4101, 4102, 4103], 4103, []
        team.append((0.0, list(pids)))
        for one in self.happenings:
            if one.kind == "kill":
                last += self.dice.randint(1, 30)
                pids[self.dice.randrange(4)] = last
                team.append((one.at, list(pids)))
        return team

    def at(self, time: float) -> list[int]:
        return self.team[bisect.bisect(self.team, time, key=lambda one: one[0]) - 1][1]

    def _question(self, n: int) -> Question:
        began = self.dice.uniform(0, self.seconds)
        pid = self.dice.choice(self.at(began))
        waited = self.dice.lognormvariate(-7.5, 1.2)
        down = any(0 <= began - at < 0.8 for at in self.restarts)
        took = waited + self.dice.lognormvariate(-5.6, 0.5) + (self.dice.random() if down else 0)
        if down and self.dice.random() < 0.5:
            error = f"OperationalError: server {pid} closed the connection {NASTY}"
            return Question(f"q{n}", began, began + took, "refused", pid, 0.0, error)
        if self.dice.random() < 0.0006:
            return Question(f"q{n}", began, None, "unknown", pid, 0.0)
        return Question(f"q{n}", began, began + took, "ok", pid, waited)

    def _look(self, at: float) -> Look:
        down = any(0 <= at - one < 0.5 for one in self.restarts)
        found: dict[int, int] = {}
        for pid in [] if down else self.dice.choices(self.at(at), k=self.dice.randint(4, 6)):
            found[pid] = found.get(pid, 0) + 1
        return Look(at, found)

    def health(self) -> list[Health]:
        return [
            Health(
                at, pid, 30 * 2**20 + pid * 2000 + int(at * 9000), 20 + self.dice.randint(0, 4), 5
            )
            for at in range(0, int(self.seconds), max(1, int(self.seconds / 600)))
            for pid in self.at(at)
        ]


def made(
    seconds: float = 30.0, rate: float = 400.0, looks: float = 0.02, rates: float = 1.0
) -> Record:
    one = Made(3, seconds, rate, looks, rates)
    checks = [
        Check("questions answered", f"{len(one.questions):,}", "some", True),
        Check("  wrong answers", "0", "0", True),
        Check("sessions at most, lasting", "6", "at most totalmax = 6", True),
        Check("rows in the ledger without an answer", "0", "0", True),
    ]
    return record(
        seconds=seconds, questions=one.questions, looks=one.looks, happenings=one.happenings,
        health=one.health(), sessions=6, lasting=6, reclaimed=11, checks=checks,
        notes=["A closed session is listed until its server process has ended."],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a good trial, of one that is wrong and full of what must be escaped, and of an empty one.
    """
    pytest.importorskip("matplotlib")
    wrong = made(seconds=4.0)
    wrong.variant, wrong.notes, wrong.looks, wrong.health = NASTY, [NASTY], [], []
    wrong.happenings.append(Happening(1.0, NASTY, NASTY))
    wrong.checks = [Check(NASTY, "7", NASTY, False)]
    wrong.settings = {NASTY: NASTY}
    folder = tmp_path_factory.mktemp("report") / "made"
    return write([made(seconds=6.0), wrong, record(variant="empty")], folder)


def browse(page: Path, width: int, folder: Path) -> tuple[str, str]:
    """What a browser makes of it, and what it says of that."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        assert os.environ.get("NIMUE_REQUIRE_CHROMIUM") != "1", "no Chromium"
        pytest.skip("no Chromium")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-background-networking", "--no-first-run", f"--user-data-dir={folder}",
         f"--window-size={width},900", "--virtual-time-budget=2000", "--enable-logging=stderr",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_a_browser_shows_the_page_and_asks_nobody(page: Path, tmp_path: Path) -> None:
    dom, said = browse(page, 1200, tmp_path)
    assert "CONSOLE" not in said, said  # its policy forbids all requests: each would be told of
    assert "default-src 'none'" in dom
    assert dom.count('<section class="trial"') == 3
    assert dom.count("<svg") == 2 * (6 + 4)  # for two sizes
    assert "Not right." in dom
    assert "not checked" in dom
    assert "<script" not in dom
    assert dom.count("&lt;script&gt;") > 8


#: What is seen of each drawing, and whether anything is wider than the window.
PROBE = """<script>
const seen = [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height);
document.title = JSON.stringify({
  shown: [...new Set(seen.map(s => s.getAttribute('class')))],
  inked: seen.every(s => s.querySelectorAll('path,use').length > 4 && s.getBBox().width > 250),
  drawn: seen.length,
  colours: [...new Set(seen.flatMap(s => [...s.querySelectorAll('path')].map(
    p => getComputedStyle(p).fill)))].length,
  over: document.documentElement.scrollWidth - window.innerWidth,
});
</script></body>"""


@pytest.mark.parametrize(("width", "shown"), [(500, "narrow"), (1200, "wide")])
def test_phone_and_desk_are_shown_what_fits_them(
    page: Path, tmp_path: Path, width: int, shown: str
) -> None:
    probed = tmp_path / "probed.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    probed.write_text(text.replace("</body>", PROBE))
    dom, said = browse(probed, width, tmp_path / "browser")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    found = json.loads(title[1].replace("&quot;", '"'))
    assert found["shown"] == [shown], said
    assert found["drawn"] == 6 + 4
    assert found["inked"]
    assert found["colours"] > 4  # the page's variables arrive in the drawings
    assert found["over"] <= 0


def test_the_page_needs_nothing_from_outside(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\((?!#)|@import|https?:""", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))  # else one drawing would be clipped by another's frame
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert len(text) < 400_000


def test_a_drawing_made_small_shows_the_same() -> None:
    look = 'style="fill: none; stroke: var(--ink)"'
    drawn = "".join(f'<g>\n<path d="{d}" {look}/>\n</g>\n' for d in (
        "M 1.0 2.04 \nL 1.0 5 \nL 1.0 9.0 \nL 4 9 \nL 2 9 \nL 3 9 \n", "M 0 0 \nL 7 0 \n"))
    shown, rules = svg.named(svg.small(f'<svg version="1.1">\n{drawn}</svg>'))
    # What turns back is kept; of a straight way the ends are.
    assert shown == '<svg>\n<path d="M1 2 1 9 4 9 2 9 3 9M0 0 7 0" class="l0"/>\n</svg>'
    assert rules == ".l0{fill:none;stroke:var(--ink)}\n"


def test_trials_of_several_drivers_are_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = record(settings={"dialect": "pymysql"}, versions={"MariaDB": "10.11"}, seed=8)
    text = write([record(), other], tmp_path).read_text()
    for wanted in ("gunicorn preload, pg8000</a>", "gunicorn preload, pymysql</a>", "10.11", "18.1",
                   "one for each"):
        assert wanted in text


def test_without_a_trial_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="records is empty"):
        write([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def five() -> Record:
    """Four with an answer or an error, and one that nobody came back from."""
    return record(
        questions=[
            Question("a", 0.0, 0.5, "ok", 1, 0.1),
            Question("b", 1.0, 1.25, "ok", 1, 0.0),
            Question("c", 2.0, 4.0, "ok", 2, 1.5),
            Question("d", 3.0, 9.0, "refused", 2, 0.0, "PoolError: none in 6 s", wrong=True),
            Question("e", 4.0, None, "unknown", 0, 0.0),
        ],
        looks=[Look(0.0, {1: 2}), Look(1.0, {1: 3, 2: 2}), Look(2.0, {2: 1, 3: 1})],
        happenings=[Happening(1.0, "kill", "1"), Happening(2.0, "kill", "2"),
                    Happening(3.0, "worker died", "3")],
        health=[Health(1.0, 1, 1000, 7, 2), Health(2.0, 1, 3000, 5, 4)],
        sessions=5, lasting=4, reclaimed=2,
        checks=[Check("x", "1", "1", True), Check("y", "1", "0", False)],
    )  # fmt: skip


def test_figures_are_those_counted_by_hand() -> None:
    assert figures(five()) == {
        "seconds": 10.0, "questions": 5, "answered": 3, "refused": 1, "unknown": 1,
        "never_ended": 1, "wrong": 1, "answered_per_second": 3 / 9,
        "latency_p50_s": 0.5, "latency_p99_s": 2.0, "latency_longest_s": 2.0,
        "wait_p50_s": 0.1, "wait_p99_s": 1.5, "wait_longest_s": 1.5,
        "processes": 3, "looks": 3, "limit": 6, "sessions_most": 5, "sessions_lasting": 4,
        "reclaimed": 2, "happenings": 3, "happenings_kill": 2, "happenings_worker_died": 1,
        "memory_most_bytes": 3000, "descriptors_most": 7, "threads_most": 4,
        "checks": 2, "checks_failed": 1,
    }  # fmt: skip


def test_the_file_keeps_what_a_run_is_repeated_with(tmp_path: Path) -> None:
    save([five(), record()], tmp_path / "trials.json")
    kept = json.loads((tmp_path / "trials.json").read_text())
    assert kept["good"] is False
    first, empty = kept["trials"]
    assert (first["seed"], first["versions"]["nimue"]) == (7, "0.1.0")
    assert first["settings"]["fault"] == ["kill=0.5", "cut=1"]
    assert [check["right"] for check in first["checks"]] == [True, False]
    assert first["errors"] == [{"error": "PoolError: none in 6 s", "count": 1}]
    assert empty["figures"]["latency_p50_s"] is None
    assert words.command(five()) == (
        "python -m stress gunicorn --variant preload --seconds 10 --seed 7 --driver pg8000"
        " --totalmax none --fault kill=0.5 --fault cut=1"
    )


def test_spans_hold_what_was_put_in_them() -> None:
    axis = bins.Axis.of(9.0, 5)
    assert (axis.width, axis.count, axis.at(-1), axis.at(3.9), axis.at(99)) == (2.0, 5, 0, 1, 4)
    questions = five().questions
    spans = bins.latencies(questions, axis)
    assert spans[0] == bins.Spread(0.25, 0.5, 0.5)
    assert spans[1] == bins.Spread(2.0, 2.0, 2.0)
    assert spans[2:] == [None, None, None]
    answered, failed = bins.rates(questions, axis, 9.0)
    assert answered == [1.0, 0.0, 0.5, 0.0, 0.0]
    assert failed == [0.0, 0.0, 0.5, 0.0, 1.0]  # the last span is half as long


def test_what_a_look_saw_is_so_until_the_next() -> None:
    looks = [Look(0.5, {1: 2}), Look(1.0, {1: 3}), Look(1.5, {1: 1}), Look(6.5, {}), Look(7, {})]
    full = bins.fullest(looks, bins.Axis.of(10.0, 5))
    assert full == [{1: 3}, {1: 1}, {1: 1}, {1: 1}, {}]


def test_who_follows_another_takes_its_seat() -> None:
    looks = [Look(0, {1: 1, 2: 1}), Look(1, {1: 1}), Look(2, {1: 1, 3: 1}), Look(3, {3: 1, 4: 0})]
    found = bins.seats(looks)
    assert found.seat == {1: 0, 2: 1, 3: 1}
    assert found.turn == {1: 0, 2: 0, 3: 1}


def test_every_kind_has_a_mark_of_its_own() -> None:
    many = [Happening(n / 10, "fork", "") for n in range(100)]
    found = marks([*many, Happening(1.0, "kill", "4"), Happening(2.0, "worker died", "by OOM")])
    assert [mark.kind for mark in found] == ["kill", "fork", "worker died"]
    assert len({(mark.shape, mark.colour) for mark in found}) == 3
    assert [mark.rare for mark in found] == [True, False, True]
    assert found[2].told == "by OOM"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.4e-4, "340 µs"), (0.00999, "10 ms"), (0.9996, "1 s"), (1.5, "1.5 s"), (3661, "1 h 1 min")],
)
def test_lengths_are_said_in_their_unit(seconds: float, said: str) -> None:
    assert words.span(seconds) == said


def test_errors_that_differ_in_numbers_are_one() -> None:
    told = ["gone: 12", "gone: 345", "refused", ""]
    questions = [Question("q", 0.0, 1.0, "refused", 1, 0.0, text) for text in told]
    assert words.errors(questions) == [("gone: 12", 2), ("refused", 1)]


def scene(**changes: Any) -> Scene:
    workers = tuple(Worker(pid, 1, 10 * pid, 0, 0.012, pid > 30) for pid in range(1, 61))
    begin = Scene(0.0, 30.0, "forks", workers, 5, 6, 6, 410.0, {"kill": 2}, ("[b]", "2 killed"))
    return replace(begin, **changes)


def test_a_terminal_sees_those_that_live_and_the_last_that_happened() -> None:
    console_of = pytest.importorskip("rich.console").Console
    out = io.StringIO()
    console = console_of(file=out, force_terminal=True, width=100, height=30)
    with Live(Plan("forks"), console) as live:
        live.draw(scene())
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert re.search(r"60 +1 +600 +0 +12 ms", text)
    assert "44 more" in text
    assert "[b]" in text
    assert "5 of 6 sessions, at most 6" in text


def course(elapsed: float, questions: list[Question]) -> Any:
    """As much of one as is shown."""
    return SimpleNamespace(
        plan=Plan("forks"),
        elapsed=elapsed,
        diaries=SimpleNamespace(questions=questions, happenings=[Happening(2.0, "leak", "7: it")]),
        mischief=SimpleNamespace(done=[Happening(1.0, "kill", "8"), Happening(3.0, "kill", "9")]),
        befallen=[],
        scenario=SimpleNamespace(workers=lambda: [1, 3]),
        sessions=SimpleNamespace(now={1: 2, 2: 1}, census=SimpleNamespace(lasting=4)),
    )


def test_a_scene_is_what_the_course_has_seen() -> None:
    scenes = Scenes()
    questions = five().questions[:2]
    scenes.of(course(1.0, questions))
    now = scenes.of(course(2.0, [*questions, *five().questions[2:]]))
    assert now.workers == (
        Worker(1, 2, 2, 0, 0.0, True),
        Worker(2, 1, 1, 1, 1.5, False),
        Worker(3, 0, 0, 0, None, True),
    )
    assert (now.sessions, now.most, now.limit) == (3, 4, 6)
    assert now.per_second == 1.5
    assert now.faults == {"kill": 2, "leak": 1}
    assert now.happened[-1] == "   3.0 s  kill 9"


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    console_of = pytest.importorskip("rich.console").Console
    out = io.StringIO()
    with Live(Plan("forks"), console_of(file=out, width=60)) as live:
        for tenth in range(50):
            live.show(course(tenth / 10, []))
    assert len(out.getvalue().splitlines()) == 1 + 3
    assert "\x1b" not in out.getvalue()


def test_the_verdict_names_errors_and_shows_brackets_as_they_are() -> None:
    console_of = pytest.importorskip("rich.console").Console
    out = io.StringIO()
    one = five()
    one.checks.append(Check("a [bold]thing", "[1]", "[/]", False))
    verdict(one, console_of(file=out, width=100))
    text = out.getvalue()
    for wanted in ("a [bold]thing", "[1]", "[/]", "1 x PoolError: none in 6 s", "2 of 3 checks"):
        assert wanted in text
