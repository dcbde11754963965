"""The three pictures of the gate's page as inline SVG: intervals, shares, scatter. Pure; labels are escaped here."""

from collections.abc import Sequence
from html import escape

WIDTH = 720
LABEL = 210
"""Room for the names of rows."""


def intervals(rows: Sequence[tuple[str, float, float, float]], bounds: Sequence[tuple[int, float]] = ()) -> str:
    """One line a row, `(name, value, lower, upper)` on a scale of 0 to 1, with one half marked; `bounds` are pairs of a
    row's index and a value that is drawn as a tick in it."""

    def at(value: float) -> float:
        return LABEL + value * (WIDTH - LABEL - 130)

    height = 30 * len(rows) + 26
    out = [f'<line class="axis" x1="{at(0):.1f}" y1="{height - 22}" x2="{at(1):.1f}" y2="{height - 22}"/>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(f'<text x="{at(tick):.1f}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    out.append(f'<line class="half" x1="{at(0.5):.1f}" y1="4" x2="{at(0.5):.1f}" y2="{height - 22}"/>')
    for index, (name, value, lower, upper) in enumerate(rows):
        y = 30 * index + 18
        out.append(f'<text class="strong" x="0" y="{y + 4}">{escape(name)}</text>')
        out.append(f'<line class="mark" x1="{at(lower):.1f}" y1="{y}" x2="{at(upper):.1f}" y2="{y}" stroke-width="2"/>')
        out.append(f'<circle class="mark" cx="{at(value):.1f}" cy="{y}" r="5"/>')
        told = f"{value:.3f} [{lower:.3f}, {upper:.3f}]"
        out.append(f'<text class="strong" x="{WIDTH}" y="{y + 4}" text-anchor="end">{told}</text>')
    for index, value in bounds:
        y = 30 * index + 18
        out.append(f'<line class="half" x1="{at(value):.1f}" y1="{y - 9}" x2="{at(value):.1f}" y2="{y + 9}"/>')
    return _svg(WIDTH, height, out, "Win rates with their intervals")


def bars(rows: Sequence[tuple[str, int, int, int]]) -> str:
    """One stacked bar a row: `(name, won, tied, lost)`, each with its number."""
    height = 34 * len(rows)
    out = []
    for index, (name, *counts) in enumerate(rows):
        y, x, total = 34 * index + 4, float(LABEL), sum(counts) or 1
        out.append(f'<text class="strong" x="0" y="{y + 17}">{escape(name)}, {sum(counts)} prompts</text>')
        for kind, count in zip(("win", "tie", "loss"), counts, strict=True):
            wide = count / total * (WIDTH - LABEL)
            if count:
                title = f"<title>{count} {kind}</title>"
                out.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="24" rx="2">{title}</rect>'
                )
            if wide > 26:
                centre = x + wide / 2
                out.append(
                    f'<text x="{centre:.1f}" y="{y + 17}" text-anchor="middle" style="fill:var(--back)">{count}</text>'
                )
            x += wide
    return _svg(WIDTH, height, out, "Won, tied and lost prompts")


def scatter(
    points: Sequence[tuple[float, float, str]],
    x_name: str,
    y_name: str,
    *,
    diagonal: bool = False,
    zero: bool = False,
    limits: tuple[float, float] | None = None,
) -> str:
    """Points `(x, y, "win" | "tie" | "loss")`. `diagonal`: both axes have the same range (`limits`, where given), with
    the line x = y; `zero`: the lines x = 0 and y = 0."""
    width, height, left, bottom = 420, 300, 46, 34
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    if diagonal:
        xs = ys = [*xs, *ys]
    x0, x1 = limits or _range([*xs, 0.0] if zero else xs)
    y0, y1 = limits or _range([*ys, 0.0] if zero else ys)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (width - left - 8),
            height - bottom - (y - y0) / (y1 - y0) * (height - bottom - 8),
        )

    def line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
        (a, b), (c, d) = at(*start), at(*end)
        return f'<line class="{kind}" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>'

    out = [line("axis", (x0, y0), (x1, y0)), line("axis", (x0, y0), (x0, y1))]
    if diagonal:
        out.append(line("half", (x0, x0), (x1, x1)))
    if zero:
        out += [line("half", (0, y0), (0, y1)), line("half", (x0, 0), (x1, 0))]
    for x, y, kind in points:
        cx, cy = at(x, y)
        out.append(f'<circle class="dot {escape(kind)}" cx="{cx:.1f}" cy="{cy:.1f}" r="4"/>')
    for value, anchor in ((x0, "start"), (x1, "end")):
        out.append(f'<text x="{at(value, y0)[0]:.1f}" y="{height - 18}" text-anchor="{anchor}">{value:.3g}</text>')
    for value, shift in ((y0, 0), (y1, 8)):
        out.append(f'<text x="{left - 5}" y="{at(x0, value)[1] + shift:.1f}" text-anchor="end">{value:.3g}</text>')
    middle = (left + width) / 2
    out.append(f'<text x="{middle}" y="{height - 3}" text-anchor="middle">{escape(x_name)}</text>')
    turned = f'transform="rotate(-90 11 {(height - bottom) / 2})"'
    out.append(f'<text x="11" y="{(height - bottom) / 2}" text-anchor="middle" {turned}>{escape(y_name)}</text>')
    return _svg(width, height, out, f"{y_name} against {x_name}")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: the data's, a little wider, never a point."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(abs(high) * 0.1, 0.5)
    return low - room, high + room


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
