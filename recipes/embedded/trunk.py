"""Train the embedded detector's trunk from scratch: a small ViT with a convolutional stem.

In: the manifest that `originals.py` writes; only its splits train and val are read; and a pretrained ViT-Ti/16, the
teacher, that the first stages imitate block by block (its weights are read, never copied). Out: a directory that
`clipmole.models.backbone.load_backbone` reads (config.json, model.safetensors in float16), and trunk.json:
settings, seed, versions, hardware, data digest, curve, validation figures and minutes.

Every view is a random place of a random original, processed by `clipmole.images.transforms.augment`, which knows no
labels: both classes are drawn equally often and processed, re-encoding included, by one policy. Progress goes to
stderr.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipmole.config import AugmentConfig, Config, TowerConfig
from clipmole.data import data_digest, load_window, read_manifest, take_split
from clipmole.data.sample import Sample
from clipmole.images.transforms import RGB, augment, equalise, pad_to, random_crop
from clipmole.metrics import average_precision
from clipmole.models.backbone import load_backbone, save_tower
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.plumbing.seeding import sample_rng

WINDOW, CROP = 256, 224  # validation: what the detector is measured on, a window re-encoded and its centre
STATE = "state.pt"  # what an interrupted run goes on from
DCT_GRID = 16  # of 4:2:0 JPEG: validation windows lie on it, as the corpus' windows do


class Stage(Config):
    """A number of steps at one crop size."""

    crop_size: int = Field(gt=0, description="side of a view, pixels")
    batch_size: int = Field(gt=0, description="views a step, over all processes; half of each class")
    steps: int = Field(gt=0)
    on_grid: float = Field(0.5, ge=0, le=1, description="share of views cut on the original's JPEG grid")
    imitate: bool = Field(False, description="imitate the teacher; otherwise, learn to detect")
    rates: tuple[float, float] = Field(description="learning rate at the first step and after the last, linear between")


class TrunkConfig(Config):
    """Everything the trunk depends on beside the data."""

    tower: TowerConfig = TowerConfig(
        patch_size=16, stem=(32, 64, 128, 192), width=192, depth=12, heads=3, mlp_width=768, projection_dim=None
    )
    stages: tuple[Stage, ...] = (
        Stage(crop_size=96, batch_size=64, steps=2300, rates=(5e-3, 3e-4), imitate=True),
        Stage(crop_size=224, batch_size=16, steps=100, rates=(3e-4, 0.0), imitate=True),
        Stage(crop_size=96, batch_size=128, steps=1100, rates=(4e-4, 2e-4)),
        Stage(crop_size=176, batch_size=48, steps=300, rates=(2e-4, 2e-4 * 1800 / 2100)),
        Stage(crop_size=176, batch_size=48, steps=900, rates=(2e-4 * 1800 / 2100, 0.0)),
    )
    augment: AugmentConfig = AugmentConfig(
        resize_probability=0.3,
        blur_probability=0.2,
        jpeg_probability=0.3,
        noise_probability=0.1,
    )
    weight_decay: float = Field(0.02, ge=0, description="of matrices and kernels")
    warmup_steps: int = Field(60, gt=0, description="at the start of every stage")
    average: float = Field(0.999, ge=0, lt=1, description="decay of the moving average that is kept")
    patch_weight: float = Field(0.5, ge=0, description="of the label asked of every patch token")
    generator_weight: float = Field(0.3, ge=0, description="of naming a generated image's generator")
    processing_weight: float = Field(0.5, ge=0, description="of telling how a view was processed")
    smoothing: float = Field(0.0, ge=0, lt=1, description="of the labels")
    val_windows: int = Field(2, gt=0, description="of each validation original")
    processes: int = Field(2, gt=0, description="of one thread each; they share a step's batch")
    seed: int = Field(0, ge=0)


class Originals:
    """The decoded originals of one split in one memory-mapped file, so that a view costs a crop."""

    def __init__(self, samples: Sequence[Sample], file: Path) -> None:
        self.samples = samples
        self.shapes: list[tuple[int, int]] = []
        self.starts: list[int] = []
        size = 0
        with file.open("wb") as out:
            for sample in samples:
                rgb = load_window(sample)
                self.shapes.append((rgb.shape[0], rgb.shape[1]))
                self.starts.append(size)
                size += out.write(rgb.tobytes())
        self.file = file

    def __getitem__(self, index: int) -> RGB:
        height, width = self.shapes[index]
        return np.memmap(self.file, np.uint8, "r", self.starts[index], (height, width, 3))

    def classes(self) -> tuple[list[list[int]], list[list[int]]]:
        """Indices of the photographs, a list a source, and of the generated images, a list a generator."""
        pools: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
        for index, sample in enumerate(self.samples):
            name = sample.generator if sample.label else sample.source
            pools[sample.label].setdefault(name, []).append(index)
        photographs, generated = ([side[name] for name in sorted(side)] for side in pools)
        return photographs, generated


class TrunkTrainer(nn.Module):
    """The tower, and the heads that are asked something of it in training only.

    In training the stem has batch normalisation after each convolution; `folded` gives the tower without.
    """

    def __init__(self, config: TowerConfig, generators: int) -> None:
        super().__init__()
        self.tower = ViT(config)
        for name, parameter in self.tower.named_parameters():
            if parameter.ndim == 2 and not name.startswith("patch_embedding"):
                nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.trunc_normal_(self.tower.class_token, std=0.02)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in config.stem)
        self.label = nn.Linear(config.feature_dim, 1)
        self.patch_label = nn.Linear(config.width, 1)
        self.generator = nn.Linear(config.feature_dim, generators)
        self.processing = nn.Linear(config.feature_dim, 4)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels (B, 3, S, S) -> logits: label (B,), each patch's (B, T - 1), generator (B, G); processing (B, 4)."""
        tokens = self.tower.post_norm(self.tower.run_blocks(self.embed(pixels)))
        feature = tokens[:, 0]
        patches = self.patch_label(tokens[:, 1:])[..., 0]
        return self.label(feature)[:, 0], patches, self.generator(feature), self.processing(feature)

    def embed(self, pixels: Tensor) -> Tensor:
        """`ViT.embed` with the stem's batch normalisation."""
        x = pixels
        stem = self.tower.patch_embedding
        for index, norm in enumerate(self.norms):
            x = F.gelu(norm(stem[2 * index](x)))
        patches = stem[-1](x)
        h, w = patches.shape[-2:]
        class_token = self.tower.class_token.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1) + self.tower.positions(h, w)

    def folded(self) -> ViT:
        """A copy of the tower with the batch normalisation folded into the stem's weights and biases."""
        tower = ViT(self.tower.config)
        tower.load_state_dict(self.tower.state_dict())
        with torch.no_grad():
            for index, norm in enumerate(self.norms):
                convolution = tower.patch_embedding[2 * index]
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                convolution.weight *= scale[:, None, None, None]
                convolution.bias.copy_((convolution.bias - norm.running_mean) * scale + norm.bias)
        return tower


def draw_view(
    originals: Originals, index: int, stage: Stage, config: AugmentConfig, rng: np.random.Generator
) -> tuple[RGB, list[float]]:
    """One random view (size, size, 3), and how it was processed, as four amounts of about the same range.

    Crops of a camera's or a web page's file start anywhere, the corpus' windows on the file's JPEG grid: both are
    drawn. What is resized leaves the grid, so that only the others are.
    """
    size, rgb = stage.crop_size, originals[index]
    if rng.random() < stage.on_grid and min(rgb.shape[:2]) >= size:
        top, left = (int(rng.integers((side - size) // DCT_GRID + 1)) * DCT_GRID for side in rgb.shape[:2])
        rgb = rgb[top : top + size, left : left + size]
        config = config.model_copy(update={"resize_probability": 0.0})
    else:
        margin = math.ceil(size / config.resize_scale[0])
        rgb = random_crop(rgb, max(size, min(margin, *rgb.shape[:2])), rng)
    drawn: dict[str, float] = {}
    view = augment(np.ascontiguousarray(rgb), size, config, rng, drawn)
    amounts = [math.log(drawn["resize_scale"]), drawn["blur_sigma"] / 3, drawn["jpeg_quality"] / 100]
    return view, [*amounts, drawn["noise_sigma"] / 5]


class Batch(NamedTuple):
    """Views of one step, half of each class."""

    pixels: Tensor  # (B, 3, S, S), normalised
    labels: Tensor  # (B,) float, 1 = AI-generated
    generators: Tensor  # (B,) int, -1 for photographs
    processing: Tensor  # (B, 4)


def batches(originals: Originals, config: TrunkConfig, rank: int, first: int) -> Iterator[Batch]:
    """The batches of a process, in order, from step `first` on; each depends on seed, process and step alone.

    Classes alternate; a generator, or a source of photographs, is drawn in proportion to the square root of its
    number of originals.
    """
    pools = originals.classes()
    shares = [np.sqrt([len(pool) for pool in side]) for side in pools]
    for step, stage in enumerate(plan(config)[first:], first):
        rng = sample_rng(config.seed, "views", rank, step)
        views, generators, processing = [], [], []
        for place in range(stage.batch_size // config.processes):
            label = place % 2
            pool = int(rng.choice(len(pools[label]), p=shares[label] / shares[label].sum()))
            index = pools[label][pool][int(rng.integers(len(pools[label][pool])))]
            view, amounts = draw_view(originals, index, stage, config.augment, rng)
            views.append(view)
            processing.append(amounts)
            generators.append(pool if label else -1)
        named = torch.tensor(generators)
        pixels = to_pixels(np.stack(views), config.tower)
        yield Batch(pixels, (named >= 0).float(), named, torch.tensor(processing))


def to_pixels(views: NDArray[np.uint8], config: TowerConfig) -> Tensor:
    """Views (B, S, S, 3) uint8 -> normalised pixels (B, 3, S, S), channels last in memory."""
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    return (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - mean) / std


def detection_loss(outputs: tuple[Tensor, ...], batch: Batch, config: TrunkConfig) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the label, of every patch's label and of the generator; smooth L1 of the processing.

    Returns their weighted sum, and the first alone.
    """
    label, patch_label, generator, processing = (output.float() for output in outputs)
    target = batch.labels * (1 - config.smoothing) + config.smoothing / 2
    every = target[:, None].expand_as(patch_label)
    own = F.binary_cross_entropy_with_logits(label, target)
    total = (
        own
        + config.patch_weight * F.binary_cross_entropy_with_logits(patch_label, every)
        + config.generator_weight * F.cross_entropy(generator, batch.generators, ignore_index=-1)
        + config.processing_weight * F.smooth_l1_loss(processing, batch.processing, beta=0.1)
    )
    return total, own


def plan(config: TrunkConfig) -> list[Stage]:
    """The stage of every step."""
    return [stage for stage in config.stages for _ in range(stage.steps)]


def imitation_loss(trainer: TrunkTrainer, teacher: ViT, pixels: Tensor) -> Tensor:
    """How far each part of the tower is from the teacher's, each given what the teacher's got: sum over the parts.

    Part i maps the teacher's tokens after block i - 1 to those after block i. Its error is the mean over channels of
    squared error / (variance of what the part changes), so that doing nothing costs 1; channels that hardly change
    are held up by a tenth of the mean variance. Every part is trained at once, and none waits for those before it.
    """
    with torch.no_grad():
        tokens = [teacher.embed(pixels).float()]
        for block in teacher.blocks:
            tokens.append(block(tokens[-1]).float())
    changes = [tokens[0], *(after - before for before, after in itertools.pairwise(tokens))]
    results = [trainer.embed(pixels), *(block(x) for block, x in zip(trainer.tower.blocks, tokens[:-1], strict=True))]
    loss = pixels.new_zeros(())
    for result, target, change in zip(results, tokens, changes, strict=True):
        variance = change.var(dim=(0, 1))
        loss = loss + ((result.float() - target).square() / (variance + 0.1 * variance.mean())).mean()
    return loss


def learning_rates(config: TrunkConfig) -> list[float]:
    """The learning rate of every step: linear within each stage, times a linear warm-up."""
    rates: list[float] = []
    for stage in config.stages:
        first, last = stage.rates
        rates += [
            (first + (last - first) * step / stage.steps) * min(1.0, (step + 1) / config.warmup_steps)
            for step in range(stage.steps)
        ]
    return rates


def val_views(originals: Originals, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Equalised centre crops of `count` windows of each original, on its JPEG grid, and the originals' indices."""
    views, indices = [], []
    for index in range(len(originals.samples)):
        rng = sample_rng(seed, "val", index)
        rgb = pad_to(originals[index], WINDOW)
        for _ in range(count):
            top, left = (int(rng.integers((side - WINDOW) // DCT_GRID + 1)) * DCT_GRID for side in rgb.shape[:2])
            window = equalise(np.ascontiguousarray(rgb[top : top + WINDOW, left : left + WINDOW]), (65, 90), rng)
            edge = (WINDOW - CROP) // 2
            views.append(window[edge : edge + CROP, edge : edge + CROP])
            indices.append(index)
    return np.stack(views), np.array(indices)


def val_figures(trainer: TrunkTrainer, originals: Originals, c: TrunkConfig) -> dict[str, float]:
    """Average precision by generator against all photographs (classes of equal weight), and the mean of them.

    Scores are those of the float16-rounded, folded tower: of what is saved.
    """
    views, indices = val_views(originals, c.val_windows, c.seed)
    tower = trainer.folded().half().float().eval()
    scores = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(views), 64):
            scores.append(trainer.label(tower(to_pixels(views[start : start + 64], c.tower)))[:, 0].float())
    y = np.array([originals.samples[i].label for i in indices])
    names = np.array([originals.samples[i].generator for i in indices])
    s = torch.cat(scores).numpy()
    figures = {}
    for name in sorted(set(names[y == 1])):
        chosen = (y == 0) | (names == name)
        figures[str(name)] = balanced_ap(y[chosen], s[chosen])
    return {"mean_over_generators": float(np.mean(list(figures.values()))), "all": balanced_ap(y, s), **figures}


def balanced_ap(y: NDArray[np.int64], s: NDArray[np.float32]) -> float:
    """Average precision as if both classes were equally frequent: the rarer one is repeated."""
    rare = int(y.mean() < 0.5)
    times = max(1, round((y != rare).sum() / (y == rare).sum()))
    return average_precision(
        np.concatenate([y, *[y[y == rare]] * (times - 1)]), np.concatenate([s, *[s[y == rare]] * (times - 1)])
    )


class Meeting(NamedTuple):
    """Where processes average their gradients: memory that they share, and a barrier.

    Two rounds of memory take turns, so that one barrier a step is enough; the order of the sum is fixed.
    """

    gradients: Tensor  # (2, processes, parameters) float32
    barrier: Barrier

    def average(self, flat: Tensor, rank: int, step: int) -> None:
        """Replace `flat` (parameters,) of every process by the mean over the processes."""
        memory = self.gradients[step % 2]
        memory[rank].copy_(flat)
        self.barrier.wait()
        torch.mean(memory, dim=0, out=flat)


def make_optimizer(trainer: TrunkTrainer, config: TrunkConfig) -> tuple[torch.optim.AdamW, Tensor]:
    """AdamW, and the one flat tensor (parameters,) float32 that all gradients are views of."""
    parameters = list(trainer.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters))
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view(parameter.shape)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True), flat


def train_process(
    rank: int, config: TrunkConfig, splits: dict[str, Originals], teacher_dir: Path, out: Path, meeting: Meeting
) -> None:
    """One of `config.processes`: the same weights in each, its own views, gradients averaged; rank 0 writes."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    trainer = TrunkTrainer(config.tower, len(splits["train"].classes()[1]))
    teacher = load_backbone(teacher_dir)
    averaged = torch.optim.swa_utils.AveragedModel(
        trainer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average), use_buffers=False
    )
    optimizer, flat = make_optimizer(trainer, config)
    rates, stages = learning_rates(config), plan(config)
    steps = len(stages)
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    first, minutes_before, state = 0, 0.0, out / STATE
    if state.exists():
        kept = torch.load(state, weights_only=True)
        trainer.load_state_dict(kept["trainer"])
        averaged.load_state_dict(kept["averaged"])
        optimizer.load_state_dict(kept["optimizer"])
        first, minutes_before, curve = kept["step"], kept["minutes"], kept["curve"]
    meeting.barrier.wait()
    began = time.perf_counter() - 60 * minutes_before
    for step, batch in enumerate(batches(splits["train"], config, rank, first), first):
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # its backward is 3 times faster
            if stages[step].imitate:
                loss = imitation_loss(trainer, teacher.tower, batch.pixels)
                told = loss / (1 + config.tower.depth)
            else:
                loss, told = detection_loss(trainer(batch.pixels), batch, config)
        flat.zero_()
        loss.backward()
        meeting.average(flat, rank, step)
        flat *= min(1.0, 1.0 / float(flat.norm()))
        optimizer.step()
        averaged.update_parameters(trainer)
        losses.append(float(told.detach()))
        if rank == 0 and ((step + 1) % 100 == 0 or step + 1 == steps):
            minutes = (time.perf_counter() - began) / 60
            name = "imitation_error" if stages[step].imitate else "label_loss"
            curve.append(
                {"step": step + 1, "crop_size": batch.pixels.shape[-1], name: round(float(np.mean(losses)), 4)}
            )
            losses.clear()
            print(f"step {step + 1}/{steps}: {curve[-1]}, {minutes:.1f} min", file=sys.stderr, flush=True)
            parts = {"trainer": trainer, "averaged": averaged, "optimizer": optimizer}
            kept = {name: part.state_dict() for name, part in parts.items()}
            torch.save(kept | {"step": step + 1, "minutes": minutes, "curve": curve}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
        if rank == 0 and not stages[step].imitate and ((step + 1) % 1000 == 0 or step + 1 == steps):
            curve[-1]["val"] = val_figures(averaged.module, splits["val"], config)
            print(f"validation: {curve[-1]['val']}", file=sys.stderr, flush=True)
            write(out, averaged.module, config, splits, teacher.sha256, curve, (time.perf_counter() - began) / 60)
    if rank == 0:
        state.unlink()


def write(
    out: Path,
    trainer: TrunkTrainer,
    config: TrunkConfig,
    splits: dict[str, Originals],
    teacher: str,
    curve: list[dict[str, Any]],
    minutes: float,
) -> None:
    """Write the tower as it stands, and what it is made of and how good it is."""
    save_tower(trainer.folded(), out)
    record = {
        "config": config.model_dump(mode="json"),
        "data": {
            "digest": data_digest([sample for split in splits.values() for sample in split.samples]),
            **{name: len(split.samples) for name, split in splits.items()},
        },
        "teacher": {"id": "ViT-Ti/16, ImageNet", "sha256": teacher},
        "parameters": sum(p.numel() for p in trainer.tower.parameters()),
        "environment": environment() | {"cores": os.cpu_count()},
        "minutes": round(minutes, 1),
        "curve": curve,
    }
    (out / "trunk.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("manifest", type=Path, help="manifest.csv of originals.py")
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the ViT-Ti/16 that is imitated")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--config", type=Path, help="TOML of TrunkConfig; default: its defaults")
    parser.add_argument("--scratch", type=Path, help="folder for 3 GB of decoded pixels; default: the system's")
    args = parser.parse_args()
    config = TrunkConfig.from_toml(args.config) if args.config else TrunkConfig()
    args.out.mkdir(parents=True, exist_ok=True)
    # The allocator must keep what it has: giving tensors' pages back at every step costs half of the time.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    samples = read_manifest(args.manifest)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        splits = {s: Originals(take_split(samples, s), folder / f"{s}.bin") for s in ("train", "val")}
        print("originals decoded", file=sys.stderr)
        count = sum(p.numel() for p in TrunkTrainer(config.tower, len(splits["train"].classes()[1])).parameters())
        shared = torch.zeros(2, config.processes, count).share_memory_()
        barrier = torch.multiprocessing.get_context("spawn").Barrier(config.processes)
        arguments = (config, splits, args.teacher, args.out, Meeting(shared, barrier))
        torch.multiprocessing.spawn(train_process, arguments, config.processes)


if __name__ == "__main__":
    main()
