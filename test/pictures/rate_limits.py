"""Draw what each algorithm admitted of one load: SVG on standard output.

    rate_limits.py LOAD <ANSWERS

ANSWERS are the lines that rate_limits.sql prints. Four charts, one an
algorithm: how many requests were offered and admitted so far, the bound that
a bucket keeps, and below each axis the single requests. The picture has a
ground of its own, light or dark as the reader's system is.
"""

import sys

ALGORITHMS = ["token_bucket", "leaky_bucket", "fixed_window", "sliding_window"]
RATE, BURST = 10, 10
SECONDS, TOP_VALUE = 5.0, 60
WIDTH, HEIGHT = 960, 662
PANEL_W, PANEL_H = 400, 190
LEFT, TOP = (56, 528), (104, 396)

LIGHT = {"ground": "#ffffff", "ink": "#1f2328", "soft": "#59636e",
         "grid": "#d9dfe5", "offered": "#9aa4af", "admitted": "#0969da",
         "leaving": "#bc4c00"}
DARK = {"ground": "#0d1117", "ink": "#e6edf3", "soft": "#9da7b3",
        "grid": "#2b323b", "offered": "#6b7480", "admitted": "#58a6ff",
        "leaving": "#f0883e"}
COLOURS = """.ground {{ fill: {ground}; }}
text {{ fill: {soft}; }}
.title, .name {{ fill: {ink}; }}
.grid {{ stroke: {grid}; }}
.axis {{ stroke: {soft}; }}
.bound {{ stroke: {ink}; }}
.offered {{ stroke: {offered}; }}
.admitted {{ stroke: {admitted}; }}
.leaving {{ stroke: {leaving}; }}
"""
STYLE = f"""
text {{ font: 13px system-ui, sans-serif; }}
.title {{ font-size: 17px; font-weight: 600; }}
.name {{ font-size: 15px; font-weight: 600; }}
path {{ fill: none; stroke-width: 2.5; }}
.bound {{ stroke-width: 1.5; stroke-dasharray: 6 5; }}
.tick {{ stroke-width: 1.5; }}
.grid, .axis {{ stroke-width: 1; }}
{COLOURS.format(**LIGHT)}@media (prefers-color-scheme: dark) {{
{COLOURS.format(**DARK)}}}
"""

TITLES = {
    "steady": "30 requests a second from 0.7 s on, where 10 are let through",
    "bursts": "Three bursts of 20 requests, where 10 a second are let through",
}


def staircase(times, x, y):
    """The path that goes up by one at each time."""
    path = [f"M{x(times[0]):.1f} {y(0):.1f}"]
    for n, t in enumerate(times):
        path.append(f"H{x(t):.1f}V{y(n + 1):.1f}")
    path.append(f"H{x(SECONDS):.1f}")
    return "".join(path)


def panel(number, algorithm, answers):
    left, top = LEFT[number % 2], TOP[number // 2]

    def x(t):
        return left + t / SECONDS * PANEL_W

    def y(n):
        return top + PANEL_H - n / TOP_VALUE * PANEL_H

    offered = [at for at, _, _ in answers]
    admitted = [at for at, allowed, _ in answers if allowed]
    leaving = sorted(at + delay for at, allowed, delay in answers if allowed)
    began = offered[0]
    out = [f'<text class="name" x="{left}" y="{top - 14}">'
           f'{algorithm}: {len(admitted)} of {len(offered)}</text>',
           f'<clipPath id="c{number}"><rect x="{left}" y="{top}" '
           f'width="{PANEL_W}" height="{PANEL_H}"/></clipPath>']
    for n in range(0, TOP_VALUE + 1, 10):
        out.append(f'<path class="grid" '
                   f'd="M{left} {y(n):.1f}h{PANEL_W}"/>'
                   f'<text x="{left - 8}" y="{y(n) + 4:.1f}" text-anchor="end">{n}</text>')
    for s in range(int(SECONDS) + 1):
        out.append(f'<path class="grid" '
                   f'd="M{x(s):.1f} {top}v{PANEL_H}"/>'
                   f'<text x="{x(s):.1f}" y="{top + PANEL_H + 48}" '
                   f'text-anchor="middle">{s} s</text>')
    out.append(f'<g clip-path="url(#c{number})">')
    out.append(f'<path class="offered" d="{staircase(offered, x, y)}"/>')
    out.append(f'<path class="admitted" d="{staircase(admitted, x, y)}"/>')
    if algorithm == "leaky_bucket":
        out.append(f'<path class="leaving" d="{staircase(leaving, x, y)}"/>')
    out.append(f'<path class="bound" d="M{x(began):.1f} {y(BURST):.1f}'
               f'L{x(SECONDS):.1f} {y(BURST + RATE * (SECONDS - began)):.1f}"/>')
    out.append('</g>')
    out.append(f'<path class="axis" '
               f'd="M{left} {top + PANEL_H}h{PANEL_W}"/>')
    rows = [("offered", offered), ("admitted", admitted)]
    if algorithm == "leaky_bucket":
        rows[1] = ("leaving", leaving)
    for row, (kind, times) in enumerate(rows):
        at = top + PANEL_H + 6 + 14 * row
        ticks = "".join(f"M{x(t):.1f} {at}v11" for t in times if t <= SECONDS)
        out.append(f'<path class="{kind} tick" d="{ticks}"/>')
    return "\n".join(out)


def legend():
    out, at = [], 56
    for kind, text, width in (
            ("offered", "offered", 96), ("admitted", "admitted", 106),
            ("leaving", "leaving the leaky bucket, after their delay", 320),
            ("bound", f"burst + rate × time: {BURST} + {RATE} a second", 0)):
        out.append(f'<path class="{kind}" d="M{at} 56h26"/>'
                   f'<text x="{at + 33}" y="60">{text}</text>')
        at += width
    return "\n".join(out)


load = sys.argv[1]
answers = {a: [] for a in ALGORITHMS}
for line in sys.stdin:
    which, algorithm, at, allowed, delay = line.split()
    if which == load:
        answers[algorithm].append((int(at) / 1e6, allowed == "1", float(delay) / 1e6))
title = TITLES[load]

print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
      f'width="{WIDTH}" height="{HEIGHT}" role="img">')
print(f"<title>{title}</title>")
print(f"<style>{STYLE}</style>")
print(f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="8"/>')
print(f'<text class="title" x="56" y="32">{title}</text>')
print(legend())
for number, algorithm in enumerate(ALGORITHMS):
    print(panel(number, algorithm, answers[algorithm]))
print("</svg>")
