"""A manifest and a configuration -> an adapter directory: one loop, the best epoch by validation.

In: `TrainConfig` and a manifest with the splits train, val and, for calibrated verdicts, calibration. Out: an
adapter directory with weights, calibration, `train.json` and a model card. It never reads other splits. It
knows nothing of terminals: progress goes to the `track` and `say` that it is given.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipmole import metrics
from clipmole.augment import augment
from clipmole.calibrate import calibrate
from clipmole.calibration import Calibration
from clipmole.config import PreprocessConfig, TrainConfig
from clipmole.data import data_digest, labels_of, load_window, read_manifest, sample_rng, take_split, windows
from clipmole.detect import Detector
from clipmole.environment import environment
from clipmole.errors import ConfigError, DataError, TrainingDiverged
from clipmole.figures import mean_generator_ap
from clipmole.models.backbone import Backbone, load_backbone
from clipmole.models.checkpoint import check_target, save_adapter
from clipmole.models.detector import MoLEDetector
from clipmole.progress import Track, untracked
from clipmole.records import Record, Sample


class Epoch(Record):
    """One epoch's curve: mean losses, learning rate at its end, validation figures, seconds."""

    epoch: int
    loss: float
    balance_loss: float
    learning_rate: float
    val_ap: float
    val_mean_generator_ap: float
    seconds: float


def _silent(_line: str) -> None:
    pass


def views(
    samples: Sequence[Sample], order: Sequence[int], epoch: int, config: TrainConfig, pool: ThreadPoolExecutor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches in `order`: crops (B, 3, S, S) uint8 and labels (B,) float32, made ahead in `pool`.

    A view depends on the seed, the epoch and the sample alone, not on workers or batch size.
    """

    def view(index: int) -> NDArray[np.uint8]:
        rng = sample_rng(config.seed, "view", epoch, index)
        return augment(load_window(samples[index]), config.preprocess.crop_size, config.augment, rng)

    ahead: deque[tuple[list[Future[NDArray[np.uint8]]], list[int]]] = deque()

    def take() -> tuple[Tensor, Tensor]:
        futures, batch = ahead.popleft()
        crops = np.stack([future.result() for future in futures]).transpose(0, 3, 1, 2)
        labels = [float(samples[i].label) for i in batch]
        return torch.from_numpy(np.ascontiguousarray(crops)), torch.tensor(labels)

    for start in range(0, len(order), config.batch_size):
        batch = list(order[start : start + config.batch_size])
        ahead.append(([pool.submit(view, index) for index in batch], batch))
        if len(ahead) > 2:
            yield take()
    while ahead:
        yield take()


@torch.inference_mode()
def cache_prefix(
    network: MoLEDetector,
    samples: Sequence[Sample],
    config: TrainConfig,
    pool: ThreadPoolExecutor,
    track: Track,
) -> Tensor:
    """Tokens before the first adapted block of `config.cached_views` views of each sample, computed once.

    Returns (views, samples, T, d) in bfloat16; view k is the view that epoch k would draw. All before the first
    adapted block is a fixed function of the view, so training on this is training, but for the rounding.
    """
    order, count = range(len(samples)), config.cached_views or 0
    parts: list[Tensor] = []
    for k in range(count):
        batches = views(samples, order, k, config, pool)
        for crops, _ in track(batches, f"view {k + 1}/{count}", math.ceil(len(samples) / config.batch_size)):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                parts.append(network.prefix(crops).bfloat16())
    return torch.cat(parts).reshape(count, len(samples), *parts[0].shape[1:])


def cached_batches(
    cache: Tensor, samples: Sequence[Sample], order: Sequence[int], epoch: int, config: TrainConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of cached tokens (B, T, d) float32 in `order`, of the epoch's view, and labels (B,) float32."""
    labels = torch.tensor([float(sample.label) for sample in samples])
    for batch in torch.tensor(order).split(config.batch_size):  # type: ignore[no-untyped-call]
        yield cache[epoch % len(cache), batch].float(), labels[batch]


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to 1 over `warmup` steps, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(network: MoLEDetector, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the tower, if it is trained, at its own learning rate."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.trained_parameters().items():
        groups[name.startswith("tower.") and config.full_finetune].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[False], "lr": config.learning_rate},
            {"params": groups[True], "lr": config.tower_learning_rate},
        ],
        weight_decay=config.weight_decay,
    )


def run_epoch(
    network: MoLEDetector,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    config: TrainConfig,
) -> tuple[float, float]:
    """One pass over `batches` of (inputs of `forward`, labels); returns the mean cross-entropy and balance loss.

    Args:
        forward: inputs -> logits (B,): the network, or its `suffix` for cached tokens.
    """
    network.train()
    network.keep_gates(True)
    totals, count = np.zeros(2), 0
    for inputs, labels in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = forward(inputs)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        balance = network.balance_loss()
        optimizer.zero_grad(set_to_none=True)
        (loss + network.config.balance_weight * balance).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.trained_parameters().values(), 1.0)
        optimizer.step()
        schedule.step()
        totals += [loss.item() * len(labels), float(balance.detach()) * len(labels)]
        count += len(labels)
    network.keep_gates(False)
    network.eval()
    mean = totals / count
    if not np.isfinite(mean).all():
        raise TrainingDiverged(f"the training loss is not finite; lower learning_rate ({config.learning_rate})")
    return float(mean[0]), float(mean[1])


def fit(
    network: MoLEDetector,
    train_set: Sequence[Sample],
    val_set: Sequence[Sample],
    config: TrainConfig,
    track: Track,
    say: Callable[[str], None],
) -> tuple[list[Epoch], int]:
    """Train `network` in place and leave the best epoch's weights in it; returns the curve and that epoch.

    The best epoch has the highest validation AP on equalised centre crops.
    """
    trained = network.trained_parameters()
    optimizer = make_optimizer(network, config)
    per_epoch = math.ceil(len(train_set) / config.batch_size)
    steps = per_epoch * config.epochs
    warmup = round(steps * config.warmup_fraction)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: learning_rate_factor(s, steps, warmup))
    crop = PreprocessConfig(mode="center_crop", crop_size=config.preprocess.crop_size)
    validator = Detector(network, crop, precision=config.precision)
    val_labels, val_generators = labels_of(val_set), np.array([sample.generator for sample in val_set])
    curve: list[Epoch] = []
    best, best_state = 0, {name: parameter.detach().clone() for name, parameter in trained.items()}
    with ThreadPoolExecutor(2) as pool:
        cache = cache_prefix(network, train_set, config, pool, track) if config.cached_views else None
        for epoch in range(config.epochs):
            start = time.perf_counter()
            order = sample_rng(config.seed, "order", epoch).permutation(len(train_set)).tolist()
            forward: Callable[[Tensor], Tensor]
            if cache is None:
                forward, batches = network.forward, views(train_set, order, epoch, config, pool)
            else:
                forward, batches = network.suffix, cached_batches(cache, train_set, order, epoch, config)
            described = track(batches, f"epoch {epoch + 1}/{config.epochs}", per_epoch)
            loss, balance = run_epoch(network, forward, described, optimizer, schedule, config)
            scores = validator.score(windows(val_set, "equalised", config.seed)).astype(np.float64)
            curve.append(
                Epoch(
                    epoch=epoch,
                    loss=loss,
                    balance_loss=balance,
                    learning_rate=schedule.get_last_lr()[0],
                    val_ap=metrics.average_precision(val_labels, scores),
                    val_mean_generator_ap=mean_generator_ap(val_generators, val_labels, scores),
                    seconds=time.perf_counter() - start,
                )
            )
            if epoch == 0 or curve[-1].val_ap > curve[best].val_ap:
                best, best_state = (
                    epoch,
                    {name: parameter.detach().clone() for name, parameter in trained.items()},
                )
            say(
                f"epoch {epoch + 1}/{config.epochs}: loss {loss:.4f}, val AP {curve[-1].val_ap:.4f} "
                f"(best {curve[best].val_ap:.4f})"
            )
            if config.patience is not None and epoch - best >= config.patience:
                say(f"stopped: no better epoch for {config.patience}")
                break
    network.load_state_dict(best_state, strict=False)
    return curve, best


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    backbone: Backbone | None = None,
    track: Track = untracked,
    say: Callable[[str], None] = _silent,
) -> Detector:
    """Train an adapter and write its directory.

    Args:
        out: the adapter directory; an older one is replaced as a whole at the end, and only then.
        manifest: instead of `config.manifest`.
        backbone: instead of loading `config.backbone`; its tower is changed in place.
        track: wraps the batches of an epoch, given a description and their number (a progress bar).
        say: gets a line an epoch.

    Returns the trained detector, calibrated if the manifest has a calibration split.
    Raises `DataError`, `ConfigError`, `WeightsError` or `CheckpointError` before any training where it can.
    """
    check_target(out)
    source = manifest or config.manifest
    if source is None:
        raise ConfigError("no manifest: set manifest in the configuration or give --manifest")
    samples = read_manifest(source)
    train_set, val_set = take_split(samples, "train"), take_split(samples, "val")
    calibration_set = [sample for sample in samples if sample.split == "calibration"]
    if calibration_set:
        take_split(samples, "calibration")
    used = [*train_set, *val_set, *calibration_set]
    missing = [sample.path for sample in used if not sample.path.is_file()]
    if missing:
        raise DataError(f"{source}: {len(missing)} of {len(used)} files are missing, such as {missing[0]}")
    digest = data_digest(used)

    torch.manual_seed(config.seed)
    loaded = backbone or load_backbone(config.backbone)
    network = MoLEDetector(loaded.tower, config.mole, config.full_finetune)
    count = sum(parameter.numel() for parameter in network.trained_parameters().values())
    total = sum(parameter.numel() for parameter in network.tower.parameters())
    say(f"{len(train_set)} training images, {len(val_set)} validation images; {count:,} parameters are trained")
    curve, best = fit(network, train_set, val_set, config, track, say)

    detector = Detector(network, config.preprocess, precision="float32")
    calibration = None
    try:
        calibration = calibrate(detector, calibration_set, config.seed) if calibration_set else None
    except DataError as error:  # the weights are worth keeping all the same
        say(f"not calibrated: {error}")
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "backbone": {"id": loaded.id, "revision": loaded.revision, "sha256": loaded.sha256},
        "data": {
            "digest": digest,
            "train": len(train_set),
            "val": len(val_set),
            "calibration": len(calibration_set),
            "generators": sorted({sample.generator for sample in train_set if sample.label}),
        },
        "trained_parameters": count,
        "tower_parameters": total,
        "best_epoch": best,
        "curve": [epoch.model_dump() for epoch in curve],
        "environment": environment(),
    }
    save_adapter(out, network, loaded, config.preprocess, calibration, record, model_card(record, calibration))
    return Detector(network, config.preprocess, calibration, Path(out).name)


def model_card(record: dict[str, Any], calibration: Calibration | None) -> str:
    """A model card (Markdown) of a training run: what it is, what it saw, what it must not be taken for."""
    data, best = record["data"], record["curve"][record["best_epoch"]]
    lines = [
        "---",
        "library_name: clipmole",
        "tags: [ai-generated-image-detection, image-forensics]",
        "---",
        "# AI-generated image detector",
        "",
        f"A clipmole adapter on the frozen backbone `{record['backbone']['id']}` "
        f"(weights sha256 `{record['backbone']['sha256'][:12]}...`).",
        f"{record['trained_parameters']:,} parameters were trained; the tower has {record['tower_parameters']:,}.",
        "",
        "## Training",
        f"- Data: {data['train']} training, {data['val']} validation and {data['calibration']} calibration images, "
        f"digest `{data['digest'][:12]}...`.",
        f"- Generators seen: {', '.join(data['generators'])}.",
        f"- Best epoch {record['best_epoch'] + 1} of {len(record['curve'])}: validation AP {best['val_ap']:.3f} "
        "on equalised windows. It was chosen by this figure, so expect less on other images.",
        f"- Made on {record['environment']['date']} with clipmole {record['environment']['clipmole']}, "
        f"torch {record['environment']['torch']}, on {record['environment']['cpu']}; all settings are in `train.json`.",
        "",
        "## Verdicts",
    ]
    if calibration is None:
        lines.append("- Not calibrated: there was no calibration split, so it gives logits and no verdicts.")
    else:
        lines += [
            f"- Calibrated on {calibration.real} photographs and {calibration.ai} generated images, "
            f"{' and '.join(calibration.variants)}.",
            f"- AI-generated above probability {calibration.thresholds.ai:.3f}: at most "
            f"{calibration.max_false_alarm:.0%} of the calibration photographs. Real below "
            f"{calibration.thresholds.real:.3f}: at most {calibration.max_miss:.0%} of its generated images. Between "
            "them: uncertain.",
            "- The probability holds for as many generated images as photographs, of the kinds it was calibrated on.",
        ]
    lines += [
        "",
        "## Limits",
        "- A verdict is a likelihood, never a proof. Generators, cameras and edits that it has not seen, and strong "
        "resizing or compression, make it wrong more often than the figures above say.",
        "- Where the training images have restricted terms, so may have what was trained on them.",
    ]
    return "\n".join(lines) + "\n"
