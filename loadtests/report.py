"""A run at a constant rate as one HTML page that needs nothing else: figures, verdict, and how latency went.  Pure."""

import html
from collections.abc import Sequence

from loadtests.openloop import Answer, Lost
from loadtests.verdict import Figures, percentile

WIDTH, HEIGHT, MARGIN = 860, 260, 48
COLOURS = ("#2563eb", "#d97706", "#dc2626", "#059669", "#7c3aed", "#475569")
Point = tuple[float, float]


def figures(answers: Sequence[Answer], lost: Sequence[Lost], seconds: float) -> Figures:
    """Times from when a request was due, so that what waited behind a slow one counts as late."""
    ordered = sorted(one.seconds * 1e3 for one in answers)
    shares = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Figures(len(answers) + len(lost), len(lost), len(answers) / seconds, *shares, ordered[-1] if ordered else 0.0)


def by_second(answers: Sequence[Answer], share: float) -> list[Point]:
    """A percentile in milliseconds of the requests that were due in each second."""
    buckets: dict[int, list[float]] = {}
    for one in answers:
        buckets.setdefault(int(one.at), []).append(one.seconds * 1e3)
    return [(float(second), percentile(sorted(found), share)) for second, found in sorted(buckets.items())]


def chart(title: str, lines: dict[str, list[Point]], across: str, up: str) -> str:
    """Lines over one pair of axes, from zero; an SVG."""
    right = max((x for points in lines.values() for x, _ in points), default=0.0) or 1.0
    top = max((y for points in lines.values() for _, y in points), default=0.0) or 1.0

    def at(point: Point) -> str:
        x, y = point
        return f"{MARGIN + x / right * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - y / top * (HEIGHT - 2 * MARGIN):.1f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    ]
    parts.append(f'<text x="{MARGIN}" y="20" font-weight="bold">{html.escape(title)}</text>')
    for share in (0.0, 0.5, 1.0):
        x, y = at((right * share, top * share)).split(",")
        parts.append(f'<line x1="{MARGIN}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y}" text-anchor="end" font-size="11">{top * share:.3g}</text>')
        parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle" font-size="11">{right * share:.3g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" font-size="12">{html.escape(across)}</text>')
    parts.append(f'<text x="{MARGIN}" y="36" font-size="11">{html.escape(up)}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(map(at, points))}"/>')
        x = WIDTH - MARGIN - 110 * (len(lines) - number)
        parts.append(f'<text x="{x + 100}" y="20" text-anchor="end" fill="{colour}" font-size="12">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def stacked(charts: Sequence[str]) -> str:
    """Charts one below the other, as one SVG on white."""
    placed = [
        one.replace("<svg ", f'<svg y="{HEIGHT * at}" width="{WIDTH}" height="{HEIGHT}" ', 1) for at, one in enumerate(charts)
    ]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT * len(charts)}" width="{WIDTH}" height="{HEIGHT * len(charts)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui,sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(placed)}</svg>'
    )


def distribution(answers: Sequence[Answer]) -> list[Point]:
    """Share of the requests in percent → milliseconds, drawn out to the slow end: 0, 50, 90, 99 are equally far apart."""
    ordered = sorted(one.seconds * 1e3 for one in answers)
    steps = [(-1.0, 0.0), (0.0, 0.5), *((nines, 1 - 10**-nines) for nines in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))]
    return [(nines + 1.0, percentile(ordered, share)) for nines, share in steps]


def page(title: str, found: Figures, missed: Sequence[str], charts: Sequence[str]) -> str:
    verdict = "".join(f"<p class=bad>It falls short: {html.escape(line)}</p>" for line in missed)
    rows = {
        "requests": f"{found.requests}",
        "failed": f"{found.failures}",
        "answers a second": f"{found.rate:.1f}",
        "50 %": f"{found.p50:.2f} ms",
        "95 %": f"{found.p95:.2f} ms",
        "99 %": f"{found.p99:.2f} ms",
        "slowest": f"{found.longest:.2f} ms",
    }
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
    style = (
        "body{font:15px system-ui,sans-serif;max-width:900px;margin:2em auto;color:#0f172a}"
        "th{text-align:left;padding-right:2em;font-weight:normal}td{text-align:right}"
        ".good{color:#059669}.bad{color:#dc2626}svg{width:100%;font-family:inherit}"
    )
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    told = verdict or "<p class=good>All limits were kept.</p>"
    return f"{head}<h1>{html.escape(title)}</h1>{told}<table>{cells}</table>{''.join(charts)}</html>\n"
