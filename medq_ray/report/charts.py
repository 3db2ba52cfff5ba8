"""The drawings of the report as inline SVG.

SVG rather than bitmaps: crisp at any size, and its colours follow the reader's light or dark scheme through CSS
classes (`style.html`). Coordinates are pixels of the view box.
"""

import math
from html import escape

from medq_ray.report.text import percent, rejected, words

SERIES = (("dev", "dev"), ("test", "test"))


def progress(iterations: list[dict], kind: str | None = None, *, width: int = 620, height: int = 330) -> str:
    """Accuracy of dev and test over iterations with the test's 95 % intervals; one question kind, or all perception.

    The lines run through what served; a checkpoint that was not promoted is a cross beside them."""
    scores = {split: [of_kind(row[split], kind) for row in iterations] for split, _ in SERIES}
    bounds = [b for s in scores["test"] if s for b in s["ci95"]] + [s["accuracy"] for s in scores["dev"] if s]
    low, high = axis(bounds)
    left, right, top, bottom = 40, 86, 12, 34
    last = max(1, len(iterations) - 1)

    def x(t: int) -> float:
        return left + 14 + (width - left - right - 28) * t / last

    def y(share: float) -> float:
        return top + (height - top - bottom) * (high - share) / (high - low)

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        at = f'x="{left - 8}" y="{y(tick) + 4:.1f}"'
        parts.append(f'<text class="tick" {at} text-anchor="end">{100 * tick:.0f}</text>')
    for t in range(len(iterations)):
        name = "base" if t == 0 else str(t)
        parts.append(f'<text class="tick" x="{x(t):.1f}" y="{height - 10}" text-anchor="middle">{name}</text>')
    labels, finals = {}, {}
    for split, mark in SERIES:
        points = [(x(t), y(s["accuracy"]), s) for t, s in enumerate(scores[split]) if s and not rejected(iterations[t])]
        others = [(x(t), y(s["accuracy"]), s) for t, s in enumerate(scores[split]) if s and rejected(iterations[t])]
        if not points:
            continue
        if split == "test":
            parts += [
                f'<line class="bar" x1="{px:.1f}" x2="{px:.1f}" y1="{y(s["ci95"][0]):.1f}" y2="{y(s["ci95"][1]):.1f}"/>'
                for px, _, s in points + others
            ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(f'<polyline class="line {mark}" points="{path}"/>')
        parts += [
            f'<circle class="dot {mark}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"><title>{label(split, s)}</title></circle>'
            for px, py, s in points
        ]
        parts += [
            f'<path class="cross {mark}" d="M{px - 4:.1f} {py - 4:.1f}l8 8m0 -8l-8 8">'
            f"<title>{label(split, s)}, not promoted</title></path>"
            for px, py, s in others
        ]
        labels[split] = (max(px for px, *_ in points + others) + 10, points[-1][1])
        finals[split] = percent(points[-1][2]["accuracy"])
    for split, (px, py) in spread(labels).items():
        parts.append(f'<text class="end {split}" x="{px:.1f}" y="{py + 4:.1f}">{split} {finals[split]}</text>')
    name = "perception" if kind is None else words(kind)
    return figure(width, height, f"{name} accuracy in percent over iterations", parts)


def dumbbells(groups: list[tuple[str, list[tuple[str, dict, dict]]]], *, width: int = 620) -> str:
    """Test accuracy of the base and of what serves for rows of groups: [(heading, [(row, base, now)])]; intervals on
    both."""
    shown = [score for _, rows in groups for _, *pair in rows for score in pair]
    low, high = axis([bound for score in shown for bound in score["ci95"]])
    left, right, row_height = 132, 62, 24

    def x(share: float) -> float:
        return left + (width - left - right) * (share - low) / (high - low)

    height = 30 + sum(26 + row_height * len(rows) for _, rows in groups)
    parts, y = [], 22
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="20" y2="{height - 6}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="13" text-anchor="middle">{100 * tick:.0f}</text>')
    for heading, rows in groups:
        y += 26
        parts.append(f'<text class="heading" x="0" y="{y - 6}">{escape(heading)}</text>')
        for name, base, now in rows:
            y += row_height
            middle = y - 12
            parts.append(f'<text class="name" x="10" y="{middle + 4}">{escape(name)}</text>')
            for name, score, mark, at in (("base", base, "base", middle - 4), ("serving", now, "test", middle + 4)):
                ends = [x(bound) for bound in score["ci95"]]
                parts.append(f'<line class="bar {mark}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{at}" y2="{at}"/>')
                parts.append(f'<circle class="dot {mark}" cx="{x(score["accuracy"]):.1f}" cy="{at}" r="3.5">'
                             f"<title>{label(name, score)}</title></circle>")  # fmt: skip
            change = 100 * (now["accuracy"] - base["accuracy"])
            text = f"{change:+.1f}".replace("-", "−")
            parts.append(f'<text class="change" x="{width}" y="{middle + 4}" text-anchor="end">{text}</text>')
    return figure(width, height, "test accuracy of the base and the checkpoint that serves by group, in percent", parts)


def of_kind(score: dict, kind: str | None) -> dict | None:
    """The accuracy record of one kind, or of all perception; None where there is none."""
    chosen = score if kind is None else score["by_kind"].get(kind)
    return chosen if chosen and chosen["accuracy"] is not None else None


def axis(shares: list[float]) -> tuple[float, float]:
    """Whole tens of percent that hold all values, at least 20 points apart."""
    low = math.floor(10 * min(shares, default=0) + 1e-9) / 10
    high = math.ceil(10 * max(shares, default=1) - 1e-9) / 10
    return (low, max(high, low + 0.2)) if low <= 0.8 else (0.8, 1.0)


def ticks(low: float, high: float) -> list[float]:
    """Every ten percent, or every twenty on a long axis, between whole tens."""
    step = 1 if high - low <= 0.6 + 1e-9 else 2
    first = -(-round(10 * low) // step) * step
    return [tenth / 10 for tenth in range(first, round(10 * high) + 1, step)]


def label(name: str, score: dict) -> str:
    low, high = score["ci95"]
    return f"{name}: {percent(score['accuracy'])} % ({percent(low)} to {percent(high)}), n = {score['n']}"


def spread(labels: dict[str, tuple[float, float]], gap: float = 15.0) -> dict[str, tuple[float, float]]:
    """Label positions (x, y), moved down until none covers the one above it, then all up by half of the last move."""
    placed, above, push = {}, -math.inf, 0.0
    for name, (x, y) in sorted(labels.items(), key=lambda item: (item[1][1], item[0])):
        above = max(y, above + gap)
        push = above - y
        placed[name] = (x, above)
    return {name: (x, y - push / 2) for name, (x, y) in placed.items()}


def figure(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    return head + "".join(parts) + "</svg>"


def losses(curves: list[tuple[str, list[tuple[float, float]]]], *, width: int = 620, height: int = 220) -> str:
    """Training loss over steps, one line a fine-tuning: [(name, [(step, loss)])]; the loss axis starts at 0."""
    left, right, top, bottom = 44, 70, 10, 32
    steps = max(step for _, points in curves for step, _ in points) or 1
    most = max(loss for _, points in curves for _, loss in points) or 1
    tick = 10 ** math.floor(math.log10(most))
    tick = next(t for t in (tick / 5, tick / 2, tick, 2 * tick) if most / t <= 5.5)

    def at(step: float, loss: float) -> tuple[float, float]:
        return left + (width - left - right) * step / steps, top + (height - top - bottom) * (1 - loss / most)

    parts = []
    for i in range(int(most / tick) + 1):
        _, y = at(0, i * tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{i * tick:g}</text>')
    labels = {}
    for number, (name, points) in enumerate(curves):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        labels[name] = at(*points[-1])
        shade = 0.45 + 0.55 * (number + 1) / len(curves)
        parts.append(f'<polyline class="line test thin" style="opacity: {shade:.2f}" points="{path}"/>')
    for name, (x, y) in spread(labels).items():
        parts.append(f'<text class="end test" x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    parts.append(f'<text class="tick" x="{width - right}" y="{height - 8}" text-anchor="end">{steps:g} steps</text>')
    return figure(width, height, "training loss over steps", parts)


def frontier(
    curves: list[tuple[str, list[tuple[float, float]], tuple[float, float] | None]], *, width: int = 620,
    height: int = 300,
) -> str:
    """Label error over the share that experts see: [(name, [(share, error)], where the routing was)]; both axes start
    at 0."""  # fmt: skip
    left, right, top, bottom = 44, 70, 12, 44
    found = [point for _, points, used in curves for point in [*points, *([used] if used else [])]]
    most_x, most_y = (max(0.1, math.ceil(10 * max(point[i] for point in found) - 1e-9) / 10) for i in (0, 1))

    def at(share: float, error: float) -> tuple[float, float]:
        return left + (width - left - right) * share / most_x, top + (height - top - bottom) * (1 - error / most_y)

    parts = []
    for tick in ticks(0, most_y):
        _, y = at(0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>')
    for tick in ticks(0, most_x):
        x, y = at(tick, 0)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{100 * tick:.0f}</text>')
    middle = left + (width - left - right) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">experts see, %</text>')
    labels = {}
    for number, (name, points, used) in enumerate(curves):
        shade = 0.45 + 0.55 * (number + 1) / len(curves)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline class="line test" style="opacity: {shade:.2f}" points="{path}"/>')
        labels[name] = at(*points[-1])
        if used:
            x, y = at(*used)
            title = f"{name}: experts saw {100 * used[0]:.1f} %; {100 * used[1]:.1f} % of labels wrong, by estimate"
            parts.append(f'<circle class="dot test" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{title}</title></circle>')
    for name, (x, y) in spread(labels).items():
        parts.append(f'<text class="end test" x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    return figure(width, height, "label error in percent over the share that experts see", parts)
