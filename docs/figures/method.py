"""Draw the figure of the method, for light and for dark pages.

    python docs/figures/method.py

Out: `method-light.svg` and `method-dark.svg` beside this file. A test checks that they are what this file draws.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

LIGHT = {
    "ink": "#1f2328", "soft": "#59636e", "frozen": "#eef1f4", "edge": "#8c959f",
    "shared": "#ffe1b3", "expert": "#cfe3ff", "router": "#d9f2dd", "head": "#ecdcff",
}  # fmt: skip
DARK = {
    "ink": "#e6edf3", "soft": "#9da7b3", "frozen": "#21262d", "edge": "#6e7681",
    "shared": "#5c4013", "expert": "#123a66", "router": "#144620", "head": "#432a63",
}  # fmt: skip
WIDTH, HEIGHT = 760, 580


class Drawing:
    """Elements of an SVG in one palette."""

    def __init__(self, colors: dict[str, str]) -> None:
        self.colors = colors
        self.parts: list[str] = []

    def box(self, x: int, y: int, w: int, h: int, fill: str, *lines: str, small: bool = False) -> None:
        """A box with lines of text in its middle."""
        c = self.colors
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{c[fill]}" stroke="{c["edge"]}"/>'
        )
        size = 14 if small else 16
        top = y + h / 2 - (len(lines) - 1) * (size + 3) / 2 + size * 0.35
        for i, line in enumerate(lines):
            self.text(x + w / 2, top + i * (size + 3), line, "ink" if i == 0 else "soft", size if i == 0 else size - 2)

    def text(self, x: float, y: float, line: str, color: str = "ink", size: int = 16, anchor: str = "middle") -> None:
        """One line of text."""
        fill = self.colors[color]
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{line}</text>'
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        ink = self.colors["soft"]
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="1.6"{dash} marker-end="url(#head)"/>'
        )

    def svg(self, title: str, width: int, height: int) -> str:
        """The whole file."""
        head = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 z" fill="{self.colors["soft"]}"/></marker>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n<title>{title}</title>\n'
            f"<defs>{head}</defs>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )


def figure(colors: dict[str, str]) -> str:
    """The method from an image to a verdict, and below it what is inside an adapted block."""
    d = Drawing(colors)
    flow = [
        (10, 82, "frozen", "image", "crops"),
        (122, 150, "frozen", "frozen blocks", "first three quarters"),
        (302, 150, "expert", "adapted blocks", "last quarter"),
        (482, 90, "head", "head", "logit"),
        (602, 148, "head", "calibration", "probability, verdict"),
    ]
    for x, w, fill, *lines in flow:
        d.box(x, 24, w, 62, fill, *lines, small=True)
    for (x, w, *_), (after, *_) in pairwise(flow):
        d.arrow((x + w, 55), (after - 1, 55))
    d.parts.append(
        f'<rect x="10" y="130" width="740" height="400" rx="10" fill="none" stroke="{colors["edge"]}" '
        'stroke-dasharray="6 5"/>'
    )
    d.arrow((377, 86), (377, 129), dashed=True)
    d.text(30, 158, "inside an adapted block, for every token", "soft", 15, "start")
    d.box(30, 290, 110, 60, "frozen", "LayerNorm", "x")
    rows = [
        (176, "frozen", "MLP", "frozen"),
        (236, "shared", "shared LoRA", "rank 4"),
        (296, "expert", "LoRA 1", "rank 2"),
        (356, "expert", "LoRA 2", "rank 4"),
        (416, "expert", "LoRA 3", "rank 8"),
    ]
    for y, fill, *lines in rows:
        d.box(230, y, 130, 48, fill, *lines, small=True)
        d.arrow((140, 320), (185, 320), (185, y + 24), (229, y + 24))
    d.box(400, 482, 130, 40, "router", "router", "softmax", small=True)
    d.arrow((185, 320), (185, 502), (399, 502))
    for i, (y, *_) in enumerate(rows[2:], start=1):
        x = 436 + 29 * (i - 1)
        d.parts.append(f'<circle cx="{x}" cy="{y + 24}" r="12" fill="{colors["router"]}" stroke="{colors["edge"]}"/>')
        d.text(x, y + 29, f"g{'₁₂₃'[i - 1]}", "ink", 12)
        d.arrow((360, y + 24), (x - 13, y + 24))
        d.arrow((x, 482), (x, y + 37), dashed=True)
        d.arrow((x + 12, y + 24), *([(565, 320)] if i == 1 else [(582, y + 24), (582, 337)]))
    for y, *_ in rows[:2]:
        d.arrow((360, y + 24), (582, y + 24), (582, 303))
    d.parts.append(f'<circle cx="582" cy="320" r="16" fill="none" stroke="{colors["soft"]}" stroke-width="1.6"/>')
    d.text(582, 326, "+", "ink", 20)
    d.arrow((598, 320), (640, 320))
    d.box(641, 290, 92, 60, "frozen", "residual", "stream", small=True)
    d.text(WIDTH / 2, 562, "y = MLP(x) + shared(x) + Σ gᵢ(x) · LoRAᵢ(x),  g = softmax(router(x))", "ink", 17)
    title = "MoLE: a frozen Vision Transformer whose deeper MLPs are adapted by a mixture of low-rank experts"
    return d.svg(title, WIDTH, HEIGHT)


def main() -> None:
    for name, colors in (("light", LIGHT), ("dark", DARK)):
        Path(__file__).with_name(f"method-{name}.svg").write_text(figure(colors), encoding="utf-8")


if __name__ == "__main__":
    main()
