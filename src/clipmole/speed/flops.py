"""The arithmetic cost of a forward pass: floating-point operations (FLOPs) and bytes that must move, for an image.

In: the geometry of a tower and its adapter. Out: counts. Only matrix products count as operations, two for each
multiplication and addition, as is usual; they are about 99 % of the arithmetic. The additional gates of a local-global
router, less than the adapter of one token, are left out, and so are companions. It knows nothing of
time.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipmole.config import MoLEConfig, TowerConfig

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Product:
    """`count` matrix products (rows, inner) x (inner, columns) an image; `weight`: the second is a parameter."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int = 1
    weight: bool = True

    @property
    def flops(self) -> int:
        """Multiplications and additions of an image."""
        return 2 * self.rows * self.inner * self.columns * self.count


def products(tower: TowerConfig, mole: MoLEConfig | None = None, class_token_only: bool = False) -> list[Product]:
    """The matrix products of one image of `tower.image_size`.

    Args:
        mole: the adapter; None: the bare tower with a head.
        class_token_only: as in `MoLENetwork`: after its queries, keys and values the last block continues with only
            the class token, since nothing else of it is read.
    """
    d, grid = tower.width, tower.grid
    tokens = 1 + grid**2
    found, channels, side = [], 3, tower.image_size
    for wider in tower.stem:
        side = (side + 1) // 2
        found.append(Product("patch embedding", side * side, 9 * channels, wider))
        channels = wider
    patch = tower.patch_size // 2 ** len(tower.stem)
    found.append(Product("patch embedding", grid**2, channels * patch**2, d))
    adapted = mole.block_indices(tower.depth) if mole else ()
    ranks = mole.shared_rank + sum(mole.gated_ranks) if mole else 0
    all_tokens = mole is not None and mole.router == "local-global" and bool(mole.expert_ranks)
    for index in range(tower.depth):
        rows = 1 if class_token_only and index == tower.depth - 1 and not all_tokens else tokens
        head = d // tower.heads
        found += [
            Product("queries, keys, values", tokens, d, 3 * d),
            Product("attention", rows, head, tokens, tower.heads, weight=False),
            Product("attention", rows, tokens, head, tower.heads, weight=False),
            Product("attention output", rows, d, d),
            Product("MLP", rows, d, tower.mlp_width),
            Product("MLP", rows, tower.mlp_width, d),
        ]
        if mole and index in adapted:
            found += [Product("adapter", rows, d, ranks), Product("adapter", rows, ranks, d)]
            if mole.gated_ranks:
                per_image = mole.router == "image" and bool(mole.expert_ranks)
                found += [
                    Product("adapter", 1 if per_image else rows, d, len(mole.expert_ranks)),
                    Product("adapter", rows, d, len(mole.extension_ranks)),
                ]
    if tower.projection_dim:
        found.append(Product("projection", 1, d, tower.projection_dim))
    read = len(mole.read_blocks(tower.depth)) if mole else 0
    return [*found, Product("head", 1, tower.feature_dim + read * d, 1)]


def flops(tower: TowerConfig, mole: MoLEConfig | None = None, class_token_only: bool = False) -> int:
    """Multiplications and additions of an image, of the matrix products that `products` lists."""
    return sum(product.flops for product in products(tower, mole, class_token_only))


def weight_bytes(tower: TowerConfig, mole: MoLEConfig | None = None, precision: str = "float32") -> int:
    """Bytes of the parameters of all matrix products: read once per forward pass, however large the batch."""
    return sum(p.inner * p.columns * p.count for p in products(tower, mole) if p.weight) * BYTES[precision]


def activation_bytes(
    tower: TowerConfig, mole: MoLEConfig | None = None, precision: str = "float32", class_token_only: bool = False
) -> int:
    """Bytes of an image that matrix products read and write, each input and result once.

    Fused operations, and data that stay in a cache between two products, move less; operations between them
    (LayerNorm, activations, additions) move more.
    """
    values = 0
    for p in products(tower, mole, class_token_only):
        values += p.count * (p.rows * p.inner + p.rows * p.columns + (0 if p.weight else p.inner * p.columns))
    return values * BYTES[precision]
