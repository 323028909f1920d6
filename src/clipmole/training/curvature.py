"""Curvature-aware merging of LoRAs: differences to a base, masked, and transformed by learnt Kronecker factors.

In: updates W_k = s B_k A_k of adapters at one position, the first of which is the base, and labelled images. Out:
merged updates. It knows nothing of adapter directories.

    W = W_1 + sum_{k>1} c_k M_k[(W_k - W_1) o m_k]
    m_k = 1 where sign(W_k - W_1) = sign(sum_j (W_j - W_1)), else 0
    M_k[D] = P_k D Q_k^T,   P_k = P'_k (x) P''_k,  Q_k = Q'_k (x) Q''_k

with c_k that sum to 1, (x) the Kronecker product and factors of about sqrt(d) x sqrt(d), which start as identities: so
without the mask learning starts at the weighted mean. Only the factors are learnt, with the logits' cross entropy.

Source: CAMEx, arXiv 2502.18821: masked differences to a base expert, and factors on both sides. There experts merge
anew for each sequence, by a router, and training learns all of it together. Here trained adapters are merged once, by
weights. There M is a sum of several such terms; as all start as identities, all get the same gradient and stay equal,
so one of them can do the same, and starts at the mean. Learning on low-rank matrices is this project's choice: M keeps
the rank of B A, since M[B A] = (P B) (A Q^T).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmole.config import PreprocessConfig
from clipmole.data import labels_of, limit_samples, windows
from clipmole.data.sample import Sample
from clipmole.errors import DataError
from clipmole.images.crops import cut_crops
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.seeding import sample_rng

EPOCHS, BATCH, RATE = 6, 32, 2e-3
MOST = 256  # images of each class to learn on
ROWS = 16  # of a forward pass without gradients

Position = tuple[str, int]
"""A LoRA: the prefix of its layer's tensors, and its number there."""


def near_square(width: int) -> tuple[int, int]:
    """(p, q) with p q = width, p <= q, as close to each other as possible."""
    p = next(p for p in range(math.isqrt(width), 0, -1) if width % p == 0)
    return p, width // p


def agreeing(differences: Sequence[Tensor]) -> list[Tensor]:
    """Differences of equal shape, 0 where their sign is not that of their sum."""
    sign = torch.stack(list(differences)).sum(dim=0).sign()
    return [each * (each.sign() == sign) for each in differences]


def kronecker(one: Tensor, two: Tensor, matrix: Tensor) -> Tensor:
    """(one (x) two) matrix: one (p, p), two (q, q), matrix (p q, r) -> (p q, r)."""
    parted = matrix.reshape(len(one), len(two), -1)
    return torch.einsum("ij,kl,jlr->ikr", one, two, parted).reshape(matrix.shape)


class Curvature(nn.Module):
    """The factors of M for one difference: 2 (p^2 + q^2) parameters, p q = d.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        p, q = near_square(width)
        self.out_one, self.out_two = nn.Parameter(torch.eye(p)), nn.Parameter(torch.eye(q))
        self.in_one, self.in_two = nn.Parameter(torch.eye(p)), nn.Parameter(torch.eye(q))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A (r, d) and B (d, r) -> A' (r, d) and B' (d, r) with B' A' = M[B A]."""
        return kronecker(self.in_one, self.in_two, a.T).T, kronecker(self.out_one, self.out_two, b)

    def dense(self, matrix: Tensor) -> Tensor:
        """M[D] of any D (d, d)."""
        width = len(matrix)
        a, b = self(torch.eye(width), matrix)  # D = D I: of rank d
        found: Tensor = b @ a
        return found


@dataclass(frozen=True)
class Merging:
    """The updates to merge at one position.

    Attributes:
        base: W_1 (d, d).
        differences: D_k (d, d) of the others, masked.
        weights: c_k of these.
    """

    base: Tensor
    differences: tuple[Tensor, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, updates: Sequence[Tensor], weights: Sequence[float]) -> Merging:
        """Of updates of equal shape, the base first, and weights that need not sum to 1."""
        total = sum(weights)
        differences = agreeing([each - updates[0] for each in updates[1:]])
        return cls(updates[0], tuple(differences), tuple(weight / total for weight in weights[1:]))

    def merged(self, curvatures: Sequence[Curvature]) -> Tensor:
        """W (d, d), exactly."""
        parts = zip(self.weights, curvatures, self.differences, strict=True)
        return self.base + sum(weight * curvature.dense(each) for weight, curvature, each in parts)


class CurvedNetwork(nn.Module):
    """Tokens before the first adapted block (B, T, d) -> logits (B,), with LoRAs made from the learnt factors.

    Args:
        network: its LoRAs have, at each position, the rank of the base plus those of the differences.
        thin: position -> (A, B) of the base, then of each difference.
        weights: c_k of the differences.
    """

    def __init__(
        self,
        network: MoLENetwork,
        thin: Mapping[Position, Sequence[tuple[Tensor, Tensor]]],
        weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.suffix = _Suffix(network)
        self.thin, self.weights = thin, weights
        width = network.tower.config.width
        self.curvatures = nn.ModuleList(Curvature(width) for _ in thin for _ in weights)

    def of(self, position: Position) -> list[Curvature]:
        """The factors of each difference at a position."""
        start = list(self.thin).index(position) * len(self.weights)
        return list(self.curvatures)[start : start + len(self.weights)]  # type: ignore[return-value]

    def forward(self, tokens: Tensor) -> Tensor:
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for position, (base, *differences) in self.thin.items():
            parts = found.setdefault(position[0], [])
            parts.append(base)
            for weight, curvature, pair in zip(self.weights, self.of(position), differences, strict=True):
                a, b = curvature(*pair)
                parts.append((a, weight * b))
        matrices = {}
        for prefix, parts in found.items():
            matrices[f"network.{prefix}lora_A"] = torch.cat([a for a, _ in parts])
            matrices[f"network.{prefix}lora_B"] = torch.cat([b for _, b in parts], dim=1)
        return torch.func.functional_call(self.suffix, matrices, (tokens,))  # type: ignore[no-any-return]


class _Suffix(nn.Module):
    """`MoLENetwork.suffix` as a module."""

    def __init__(self, network: MoLENetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network.suffix(tokens)


def curved(network: CurvedNetwork, tokens: Tensor, labels: Tensor, progress: ProgressReporter) -> tuple[float, float]:
    """Learn the factors in place; returns the loss over all tokens before and after.

    Both classes weigh the same. The factors of the epoch with the lowest loss are kept; the start counts as one.

    Args:
        tokens: before the first adapted block, (n, T, d) bfloat16.
        labels: (n,) 1 = AI-generated.
    """
    weight = torch.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    network.requires_grad_(False)
    network.curvatures.requires_grad_(True)
    optimizer = torch.optim.Adam(network.curvatures.parameters(), lr=RATE)
    before = best = _loss(network, tokens, labels, weight)
    kept = copy.deepcopy(network.curvatures.state_dict())
    for epoch in progress.track(range(EPOCHS), "learning the curvature", EPOCHS):
        order = torch.from_numpy(sample_rng(0, "curvature", epoch).permutation(len(labels)))
        for rows in order.split(BATCH):  # type: ignore[no-untyped-call]
            logits = network(tokens[rows].float())
            loss = F.binary_cross_entropy_with_logits(logits, labels[rows], weight[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        now = _loss(network, tokens, labels, weight)
        if now < best:
            best, kept = now, copy.deepcopy(network.curvatures.state_dict())
    network.curvatures.load_state_dict(kept)
    return before, best


@torch.inference_mode()
def _loss(network: CurvedNetwork, tokens: Tensor, labels: Tensor, weight: Tensor) -> float:
    logits = torch.cat([network(rows.float()) for rows in tokens.split(ROWS)])  # type: ignore[no-untyped-call]
    return float(F.binary_cross_entropy_with_logits(logits, labels, weight))


@torch.inference_mode()
def tokens_of(
    network: MoLENetwork, samples: Sequence[Sample], preprocess: PreprocessConfig, progress: ProgressReporter = SILENT
) -> tuple[Tensor, Tensor]:
    """Tokens (n, T, d) bfloat16 before the first adapted block of the images' middles, equalised, and labels (n,).

    Of each class at most `MOST` images, drawn by their names. Raises `DataError` unless there are both classes.
    """
    chosen = []
    for label in (0, 1):
        own = [s.model_copy(update={"generator": ""}) for s in samples if s.label == label]
        chosen += limit_samples(own, MOST)
    labels = labels_of(chosen)
    if not 0 < labels.sum() < len(labels):
        raise DataError(
            f"merge: {len(labels) - labels.sum()} photographs and {labels.sum()} generated images to learn the "
            "curvature on; both are needed: --data, or another --split"
        )
    config = preprocess.model_copy(update={"mode": "center_crop", "whole_weight": 0.0})
    crops = (cut_crops(rgb, config).pixels for rgb in windows(chosen, "equalised"))
    parts = []
    for crop in progress.track(crops, "looking at images", len(chosen)):
        parts.append(network.prefix(torch.from_numpy(crop)).bfloat16())
    return torch.cat(parts), torch.from_numpy(labels).float()
