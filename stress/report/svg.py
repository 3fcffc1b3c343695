"""What matplotlib writes, made small: a page holds hundreds of drawings.

What is the same in all of them (font, joins) is in ``page.css``; what nobody sees is left out.
"""

from __future__ import annotations

import re
from collections import Counter

#: Coordinates are in pixels: a tenth of one is enough.
_LONG = re.compile(r"(?<![\w#.-])(-?\d+\.\d)\d+")
_WHOLE = re.compile(r"(?<![\w#.-])(-?\d+)\.0(?!\d)")
_ROOT = re.compile(r' width="[\d.]+pt"| height="[\d.]+pt"| version="1.1"| xmlns(:\w+)?="[^"]*"')
_UNSEEN = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>"
    r'|<path d="[^"]*" style="fill: none"/>'
    r'| transform="rotate\(-0 [^)]*\)"|; font-family: [^;"]*',
    re.DOTALL,
)
_FONT = re.compile(r"font: (\d[\d.]*)px [^;\"]*")
_STYLE = re.compile(r'(?<= style=")[^"]*')
_STEPS = re.compile(r'(?<= d=")M[^"]*')
_ALONE = re.compile(r"<g>\s*((?:<(?:path|use) [^>]*/>|<text [^>]*>[^<]*</text>)?)\s*</g>")
#: Lines of one look in a row, and marks.
_LINES = re.compile(r'<path d="(M[^"zC]*)"([^>]*fill:none[^>]*)/>(?:\s*<path d="M[^"zC]*"\2/>)+')
_MARKS = re.compile(r'<use [^>]*? style="([^"]*)"/>(?:\s*<use [^>]*? style="\1"/>)+')
_ID = re.compile(r'(?<=[#"])[mp][0-9a-f]{10}(?=[)"])')

Point = tuple[str, str]


def small(text: str) -> str:
    """One drawing, as it can stand in a page."""
    text = _ROOT.sub("", text[text.index("<svg") :]).replace("xlink:href", "href")
    text = _FONT.sub(r"font-size: \1px", _UNSEEN.sub("", text))
    text = _WHOLE.sub(r"\1", _LONG.sub(r"\1", text))
    text = _STYLE.sub(lambda found: re.sub(r"([:;]) ", r"\1", found[0]), text)
    text = _STEPS.sub(lambda found: _path(found[0]), text)
    while (shorter := _ALONE.sub(r"\1", text)) != text:
        text = shorter
    text = _MARKS.sub(_grouped, _LINES.sub(_joined, text))
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    return re.sub(r"\s*\n\s*", "\n", text)


def named(text: str) -> tuple[str, str]:
    """A page whose drawings have classes for looks, and the rules of these: ``.l0{fill:none}``.

    Ids are numbered, too.
    """
    ids: dict[str, str] = {}
    text = _ID.sub(lambda found: ids.setdefault(found[0], f"i{len(ids)}"), text)
    styles = re.compile(r'(<(?:path|use|text|g) [^>]*?)style="([^"]*)"')
    counts = Counter(found[1] for found in styles.findall(text))
    names = {look: f"l{n}" for n, (look, _) in enumerate(counts.most_common())}
    rules = "".join(f".{name}{{{look}}}\n" for look, name in names.items())
    return styles.sub(lambda found: f'{found[1]}class="{names[found[2]]}"', text), rules


def _path(text: str) -> str:
    """Without the points on a straight way, and without words that go without saying."""
    if "C" in text:
        return re.sub(r"\s*([A-Zz])\s*", r"\1", text)
    runs = []
    for run in re.findall(r"M[^M]*", text):
        numbers = re.findall(r"-?[\d.]+", run)
        points = _corners(list(zip(numbers[::2], numbers[1::2], strict=True)))
        runs.append("M" + " ".join(f"{x} {y}" for x, y in points) + "z" * ("z" in run))
    return "".join(runs)


def _corners(points: list[Point]) -> list[Point]:
    found: list[Point] = []
    for point in points:
        if found and point == found[-1]:
            continue
        if len(found) > 1 and _is_between(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    return found if len(found) > 1 else points


def _is_between(first: Point, middle: Point, last: Point) -> bool:
    """Whether the way is along an axis, and does not turn back."""
    for across, along in ((0, 1), (1, 0)):
        if first[across] == middle[across] == last[across]:
            a, b, c = (float(point[along]) for point in (first, middle, last))
            return min(a, c) <= b <= max(a, c)
    return False


def _joined(found: re.Match[str]) -> str:
    paths = "".join(re.findall(r' d="([^"]*)"', found[0]))
    return f'<path d="{paths}"{found[2]}/>'


def _grouped(found: re.Match[str]) -> str:
    marks = found[0].replace(f' style="{found[1]}"', "")
    return f'<g style="{found[1]}">{marks}</g>'
