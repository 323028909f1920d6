"""Draw a figure for each of the compared methods, for light and for dark pages.

    python docs/figures/methods.py

Out: `NAME-light.svg` and `NAME-dark.svg` beside this file. A test checks that they are what this file draws. A figure
is boxes on a grid, each with its column and row (a half is between two), and arrows from box to box.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from method import DARK, LIGHT, Drawing  # the script beside this one, not a package

COLUMN, ROW, BOX, TALL, EDGE = 192, 72, 158, 50, 10
LEAST = 4  # columns that a figure is wide at least, so that all are drawn to one scale
Box = tuple[float, float, str, str, str]  # column, row, color, text, what stands below it


@dataclass(frozen=True)
class Figure:
    """A flow diagram.

    Attributes:
        boxes: name -> box.
        arrows: names of the boxes, as "from > to"; "from : to" is dashed.
    """

    title: str
    boxes: dict[str, Box]
    arrows: tuple[str, ...]

    def draw(self, colors: dict[str, str]) -> str:
        """The SVG in one palette."""
        d = Drawing(colors)
        for arrow in self.arrows:
            first, how, second = arrow.split()
            (x, y), (u, v) = (self.corner(name) for name in (first, second))
            if u > x:
                start, end, middle = (x + BOX, y + TALL / 2), (u - 1, v + TALL / 2), (x + BOX + u) / 2
                d.arrow(start, (middle, start[1]), (middle, end[1]), end, dashed=how == ":")
            else:
                below = v > y
                d.arrow((x + BOX / 2, y + TALL * below), (u + BOX / 2, v + TALL * (not below)), dashed=how == ":")
        for name, (_, _, fill, *lines) in self.boxes.items():
            x, y = self.corner(name)
            d.box(int(x), int(y), BOX, TALL, fill, *[line for line in lines if line], small=True)
        columns, rows = (1 + max(box[axis] for box in self.boxes.values()) for axis in (0, 1))
        columns = max(columns, LEAST)
        width, height = int(columns * COLUMN - (COLUMN - BOX) + 2 * EDGE), int(rows * ROW - (ROW - TALL) + 2 * EDGE)
        return d.svg(self.title, width, height)

    def corner(self, name: str) -> tuple[float, float]:
        """Left and top of a box."""
        column, row, *_ = self.boxes[name]
        return EDGE + column * COLUMN, EDGE + row * ROW


FIGURES = {
    "adapters": Figure(
        "Adapters of one block: the frozen MLP, a shared LoRA, routed experts, and an extension with a gate of its own",
        {
            "x": (0, 1.5, "frozen", "x", "a token, after LayerNorm"),
            "mlp": (1.5, 0, "frozen", "MLP", "frozen: linear probe"),
            "shared": (1.5, 1, "shared", "shared LoRA", "with it: plain LoRA"),
            "experts": (1.5, 2, "expert", "gates · experts", "with them: MoLE"),
            "new": (1.5, 3, "head", "gated new LoRA", "with it: an extension"),
            "sum": (3, 1.5, "frozen", "sum", "to the residual stream"),
        },
        tuple(f"x > {each}" for each in ("mlp", "shared", "experts", "new"))
        + tuple(f"{each} > sum" for each in ("mlp", "shared", "experts", "new")),
    ),
    "hyperdet": Figure(
        "HyperDet: a hypernetwork writes one LoRA for each group of SRM filters; merged, they are one shared LoRA",
        {
            "group": (0, 0, "router", "group k of 5", "embedding"),
            "block": (0, 1, "router", "block, matrix", "embeddings"),
            "h": (1, 0.5, "expert", "hypernetwork", "in training only"),
            "lora": (2, 0.5, "shared", "LoRA of group k", "rank r"),
            "merged": (3, 0.5, "shared", "shared LoRA", "merged: rank 5 r"),
            "srm": (0, 2, "frozen", "residual of group k", "or the image itself"),
            "tower": (2, 2, "frozen", "frozen tower", ""),
            "logit": (3, 2, "head", "head", "logit"),
        },
        ("group > h", "block > h", "h > lora", "lora : merged", "srm > tower", "lora > tower", "tower > logit"),
    ),
    "aide": Figure(
        "AIDE: experts look at the smoothest and the busiest patches, the tower at the whole crop",
        {
            "crop": (0, 1, "frozen", "crop", ""),
            "dct": (1, 0.5, "router", "DCT scores", "of windows, 32 x 32"),
            "smooth": (2, 0, "expert", "2 smoothest", "SRM, small expert"),
            "busy": (2, 1, "expert", "2 busiest", "SRM, small expert"),
            "tower": (1, 2, "frozen", "frozen tower", "class token"),
            "p": (2, 2, "shared", "projection P", "trained"),
            "mean": (3, 0.5, "expert", "mean of the four", "x₁"),
            "mlp": (3, 1.5, "head", "two layers", "logit"),
        },
        (
            "crop > dct", "crop > tower", "dct > smooth", "dct > busy", "smooth > mean", "busy > mean", "tower > p",
            "p > mlp", "mean > mlp",
        ),
    ),
    "ffit": Figure(
        "FFiT: a masked autoencoder reads the Fourier magnitude; a gated unit joins it with the tower",
        {
            "crop": (0, 1, "frozen", "crop", ""),
            "fft": (1, 0, "router", "log(1 + |FFT|)", "mirrored pairs hidden"),
            "vit": (2, 0, "expert", "small ViT", "mean token"),
            "decoder": (3, 0, "expert", "decoder", "guesses what is hidden"),
            "tower": (1, 2, "frozen", "frozen tower", "class token"),
            "gate": (2, 1, "shared", "gated unit", "z f + (1 - z) s"),
            "logit": (3, 1, "head", "head", "logit"),
        },
        ("crop > fft", "crop > tower", "fft > vit", "vit : decoder", "vit > gate", "tower > gate", "gate > logit"),
    ),
    "backbones": Figure(
        "Several backbones: frozen features side by side, one linear head",
        {
            "crop": (0, 0.5, "frozen", "crop", ""),
            "a": (1, 0, "frozen", "backbone a", "frozen"),
            "b": (1, 1, "frozen", "backbone b", "frozen"),
            "both": (2, 0.5, "shared", "[f_a; f_b]", "side by side"),
            "logit": (3, 0.5, "head", "linear head", "logit"),
        },
        ("crop > a", "crop > b", "a > both", "b > both", "both > logit"),
    ),
    "routers": Figure(
        "Routers: gates of each token, of the class token for all, or of a token times one of the image",
        {
            "token": (0, 0, "frozen", "each token x", ""),
            "softmax": (1, 0, "router", "softmax(W x)", "softmax"),
            "class": (0, 1, "frozen", "class token x₀", ""),
            "image": (1, 1, "router", "softmax(W x₀)", "image"),
            "all": (0, 2, "frozen", "all tokens", "mean of what i gives"),
            "local": (1, 2, "router", "s(W x) · s(w · mean)", "local-global, s: sigmoid"),
            "gates": (2, 1, "expert", "gates of the experts", "top k, noise: options"),
        },
        ("token > softmax", "class > image", "all > local", "softmax > gates", "image > gates", "local > gates"),
    ),
    "merging": Figure(
        "Merging: adapters of one backbone become one, by stacking or by combining their updates",
        {
            "a": (0, 0, "expert", "adapter 1", "W₁ = s B₁ A₁"),
            "k": (0, 1, "expert", "adapter K", "W_K = s B_K A_K"),
            "stack": (1, 0, "shared", "stack", "exact: the ranks add"),
            "combine": (1, 1, "router", "average, TIES, CAMEx", "of the updates W"),
            "svd": (2, 1, "router", "SVD", "cut to the parts' rank"),
            "out": (3, 0.5, "head", "one adapter", "heads averaged"),
        },
        ("a > stack", "k > stack", "a > combine", "k > combine", "stack > out", "combine > svd", "svd > out"),
    ),
    "pairs": Figure(
        "Aligned pairs: a photograph and what an autoencoder decodes of it, alike in everything else",
        {
            "photo": (0, 0.5, "frozen", "photograph", "label 0"),
            "twin": (1, 1, "expert", "autoencoder", "of several upsamplers"),
            "mix": (2, 1, "router", "mixing", "of pixels or of the DCT"),
            "align": (3, 0.5, "shared", "the same size, JPEG", "quality and views"),
            "train": (4, 0.5, "head", "training", "photograph 0, twin 1"),
        },
        ("photo > twin", "twin > mix", "mix > align", "photo > align", "align > train"),
    ),
}  # fmt: skip


def main() -> None:
    for name, figure in FIGURES.items():
        for palette, colors in (("light", LIGHT), ("dark", DARK)):
            Path(__file__).with_name(f"{name}-{palette}.svg").write_text(figure.draw(colors), encoding="utf-8")


if __name__ == "__main__":
    main()
