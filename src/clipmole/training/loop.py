"""The training loop: a network, samples and a configuration -> the best epoch's weights and the curve.

In: what `train` has read and built. Out: `Epoch` records; the network holds the weights of the best one. All draws of
an epoch depend only on the seed and its number, and after each step the state of the run can be saved and resumed: a
run that was killed ends with the weights of one that was not. It knows nothing of adapter
directories, terminals, or how processes talk to each other (`distributed`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmole import metrics
from clipmole.config import TrainConfig
from clipmole.data import labels_of, windows
from clipmole.data.sample import Sample
from clipmole.errors import CheckpointError, Stopped, TrainingDiverged
from clipmole.evaluation.estimates import mean_generator_ap
from clipmole.inference.detector import Detector
from clipmole.models.mole import balance_loss
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import ProgressReporter, Track, duration, untracked
from clipmole.plumbing.seeding import sample_rng, torch_seeded
from clipmole.records import Record
from clipmole.training.augmented_views import centre_and_whole, views
from clipmole.training.distributed import Distributed
from clipmole.training.extend import Replay
from clipmole.training.head_start import start_head
from clipmole.training.optimizer import make_optimizer, set_learning_rate
from clipmole.training.prefix_cache import ROWS, PrefixCache
from clipmole.training.run_state import load_state, save_state
from clipmole.training.sampling import Item, MicroBatch, epoch_items, micro_batches, steps_in_epoch
from clipmole.training.tensorboard import ScalarLog


class Epoch(Record):
    """One epoch of the training curve.

    Attributes:
        loss, balance_loss: means over its images, in training.
        gates: mean gate of each expert, one row for each adapted block: the router's, then those of extensions.
        learning_rate: at its end.
        val_ap: average precision on equalised centre crops of the validation images; it picks the epoch.
        val_mean_generator_ap: the mean over generators of the same.
        seconds: of the whole epoch, `train_seconds` of it without validation.
    """

    epoch: int
    loss: float
    balance_loss: float
    learning_rate: float
    gates: tuple[tuple[float, ...], ...] = ()
    val_ap: float
    val_mean_generator_ap: float
    seconds: float
    train_seconds: float


@dataclass
class LoopState:
    """The position of a run: `step` steps into epoch `epoch`, with the sums over its images so far."""

    epoch: int = 0
    step: int = 0
    images: int = 0
    loss: float = 0.0
    balance: float = 0.0
    gates: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    best: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Trainee(nn.Module):
    """The module of a step: the whole network on crops, or the blocks from `start` on kept tokens -> logits (B,).

    Args of a call:
        patches: draws the share `dropout` of patch tokens to leave out; None: none.
    """

    def __init__(self, network: MoLENetwork, start: int | None, dropout: float) -> None:
        super().__init__()
        self.network, self.start, self.dropout = network, start, dropout

    def forward(self, inputs: Tensor, patches: np.random.Generator | None = None) -> Tensor:
        if self.start is None and patches is None:
            outputs: Tensor = self.network(inputs)  # as the network would have it: HyperDet's shows each step otherwise
            return outputs if outputs.ndim == 1 else outputs[:, 0]
        start = self.network.first_adapted_block if self.start is None else self.start
        tokens = inputs.float() if self.start is not None else self.network.before(inputs, start)
        if patches is None:
            return self.network.logits(tokens, start)
        count = self.network.parted(tokens, start)[0].shape[1] - 1
        kept = patches.permutation(count)[: max(1, round(count * (1 - self.dropout)))]
        return self.network.logits(tokens, start, [0, *(1 + np.sort(kept)).tolist()])


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.inference_mode()
def kept_logits(
    network: MoLENetwork,
    cache: PrefixCache,
    indices: Sequence[int],
    config: TrainConfig,
    device: torch.device,
    track: Track = untracked,
) -> np.ndarray:
    """Logits (n,) of images from the kept tokens of their fixed views: centre crop, and whole if it is used."""
    weight = config.preprocess.whole_weight
    batches = [list(indices[start : start + ROWS]) for start in range(0, len(indices), ROWS)]
    pooled = np.zeros(len(indices))
    for view in range(cache.count):
        logits = []
        read = cache.read([[(i, view) for i in batch] for batch in batches])
        for tokens in track(read, f"view {view + 1} of {cache.count}", len(batches)):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                logits.append(network.logits(tokens.to(device).float(), cache.start).float().cpu())
        pooled += (weight if view else 1 - weight if cache.count > 1 else 1.0) * torch.cat(logits).double().numpy()
    return pooled


class TrainingLoop:
    """One training run. `fit` continues it from its present position to the end.

    It has many parameters because a run has many parts, each of which can be left out or replaced.

    Args:
        network: trained in place; on `distributed.device`.
        cache: tokens of the training images; None: every view is computed anew.
        val_cache: tokens of the validation images in their fixed views; None: they are computed anew.
        replay: older images, whose logits should not change; None: none.
        state: file that the run is kept in while it is unfinished.
        digest: of everything that the run depends on; a state of another run is refused.
        log: folder of TensorBoard's files; None: none.
        save_seconds: the state is saved after each epoch, and when the last one is this old.

    Raises `CheckpointError` if `state` is damaged or belongs to another run.
    """

    def __init__(
        self,
        network: MoLENetwork,
        train_set: Sequence[Sample],
        val_set: Sequence[Sample],
        config: TrainConfig,
        *,
        cache: PrefixCache | None,
        val_cache: PrefixCache | None = None,
        replay: Replay | None = None,
        state: Path,
        digest: str,
        log: Path | None,
        distributed: Distributed,
        pool: ThreadPoolExecutor,
        progress: ProgressReporter,
        save_seconds: float = 600.0,
    ) -> None:
        self.network, self.train_set, self.val_set, self.config = network, train_set, val_set, config
        self.cache, self.val_cache, self.replay = cache, val_cache, replay
        self.state, self.digest, self.log = state, digest, log
        self.distributed, self.pool, self.progress = distributed, pool, progress
        self.save_seconds = save_seconds
        self.steps = steps_in_epoch(len(train_set), config)
        self.trained = network.trained_parameters()
        self.best = copies(self.trained)
        self.optimizer = make_optimizer(network, config)
        self.at = LoopState()
        self._restore()
        self.model = distributed.prepare(Trainee(network, None if cache is None else cache.start, config.patch_dropout))
        self._saved = time.monotonic()

    def fit(self) -> tuple[list[Epoch], int]:
        """Train to the end and leave the best epoch's weights in the network; returns the curve and that epoch."""
        first_step = self.at.epoch * self.steps + self.at.step
        if first_step == 0 and self.config.head_start is not None and self.cache is not None:
            start_head(self.network, self.cache, self.train_set, self.config, self.progress.say)
        with ScalarLog(self.log if self.distributed.is_main else None, first_step, self.progress.say) as log:
            while self.at.epoch < self.config.epochs and not self._patience_is_over():
                self.train_epoch(log)
                self._close_epoch(log)
        if self._patience_is_over() and self.at.epoch < self.config.epochs:
            self.progress.say(f"stopped: no better epoch for {self.config.patience}")
        self.network.load_state_dict(self.best, strict=False)
        self.network.eval()
        return [Epoch.model_validate(epoch) for epoch in self.at.curve], self.at.best

    def _patience_is_over(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.at.epoch - 1 - self.at.best >= patience and self.at.epoch > 0

    def train_epoch(self, log: ScalarLog) -> None:
        """Take the remaining steps of the epoch."""
        at, size = self.at, self.config.batch_size
        items = epoch_items(self.train_set, at.epoch, self.config)
        steps = [items[start : start + size] for start in range(at.step * size, len(items), size)]
        todo = [micro_batches(step, self.config, self.distributed.rank, self.distributed.size) for step in steps]
        inputs = self._inputs([list(part.items) for parts in todo for part in parts])
        self.network.train()
        self.network.keep_gates(True)
        began = time.perf_counter()
        for parts in self._followed(todo):
            step = at.epoch * self.steps + at.step
            rate = set_learning_rate(self.optimizer, self.config, step, self.steps * self.config.epochs)
            noise = sample_rng(self.config.seed, "router noise", step, self.distributed.rank).integers(2**63)
            with torch_seeded(int(noise)):
                loss = sum(self._part(next(inputs), part) for part in parts)
            if not math.isfinite(loss):
                self._diverged("training loss is")
            self.distributed.clip(list(self.trained.values()), self.config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            log.write(step, {"loss/step": loss, "learning_rate": rate})
            at.step += 1
            now = time.perf_counter()
            at.seconds, began = at.seconds + now - began, now
            self._stop_if_asked()
            if (
                self.distributed.is_main
                and at.step < self.steps
                and time.monotonic() - self._saved >= self.save_seconds
            ):
                self._save()
        self.network.keep_gates(False)
        self.network.eval()

    def _diverged(self, what: str) -> NoReturn:
        raise TrainingDiverged(f"the {what} not finite; lower learning_rate ({self.config.learning_rate:g})")

    def _followed(self, steps: Sequence[Any]) -> Iterator[Any]:
        """The steps of an epoch, with progress; a request to stop takes effect between two of them."""
        try:
            yield from self.progress.track(steps, f"epoch {self.at.epoch + 1}/{self.config.epochs}", len(steps))
        except Stopped:
            self._stop_if_asked()
            raise

    def _stop_if_asked(self) -> None:
        """Save the state and raise `Stopped` once somebody asked the first process to stop; all of them then do so."""
        asked = torch.tensor([float(self.progress.stopping())], device=self.distributed.device)
        if not self.distributed.total(asked).item():
            return
        saved = self.distributed.is_main and self._save()
        raise Stopped(
            f"stopped after step {self.at.step} of {self.steps} in epoch {self.at.epoch + 1} of {self.config.epochs}; "
            + (f"the run is kept in {self.state}" if saved else f"its state could not be saved to {self.state}")
            + ": give the same command again to go on"
        )

    def _inputs(self, batches: list[list[Item]]) -> Iterator[Tensor]:
        if self.cache is not None:
            return self.cache.read(batches)
        return views(self.train_set, batches, self.config, self.pool)

    def _part(self, inputs: Tensor, part: MicroBatch) -> float:
        """Forward and backward of one part; returns its share of the step's mean cross-entropy.

        The balance loss is that of the part's images over all processes. Its mean gates m are sums over the processes;
        only this process's share has a gradient here, and the gradients of all processes add up to that of the whole.
        """
        device, config = self.distributed.device, self.config
        labels = torch.tensor([float(self.train_set[i].label) for i, _ in part.items], device=device)
        weights = torch.tensor(part.weights, device=device)
        patches = None
        if config.patch_dropout:
            patches = sample_rng(config.seed, "patches", self.at.epoch, self.at.images, self.distributed.rank)
        with nullcontext() if part.last else self.distributed.without_sync(self.model):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                logits = self.model(inputs.to(device, non_blocking=True), patches)
            targets = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
            errors = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
            loss = (errors * weights).sum()
            gates = [torch.einsum("bte,b->e", g, weights) / g.shape[1] for g in self.network.gates()]
            experts = len(self.network.config.expert_ranks)
            own = torch.cat([loss.reshape(1), *gates])
            every = self.distributed.total(own.detach().clone())
            means = (every + own - own.detach())[1:] / part.images
            blocks = means.reshape(len(gates), -1) if gates else means.reshape(0, 0)
            routed = [balance_loss(m[None, :experts]) for m in blocks] if experts else []
            balance = torch.stack(routed).mean() if routed else means.new_zeros(())
            share = part.images / part.step_images
            total = loss / part.step_images + config.mole.balance_weight * share * balance
            if self.network.companion is not None and (own_loss := self.network.companion.loss) is not None:
                total = total + config.mole.companion_weight * (own_loss * weights).sum() / part.step_images
            if self.replay is not None:  # the gates of the new images have been read
                rng = sample_rng(config.seed, "replay", self.at.epoch, self.at.images, self.distributed.rank)
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    change = self.replay.loss(self.network, len(part.items), rng)
                total = total + config.replay_weight * share * change / self.distributed.size
            (total * self.distributed.size).backward()  # type: ignore[no-untyped-call]
        self._count(every.tolist()[0], float(balance.detach()), blocks.detach(), part.images)
        return float(every[0]) / part.step_images

    def _count(self, loss: float, balance: float, gates: Tensor, images: int) -> None:
        at = self.at
        at.images += images
        at.loss += loss
        at.balance += balance * images
        sums = gates.double().cpu() * images
        at.gates = (sums + torch.tensor(at.gates, dtype=torch.float64) if at.gates else sums).tolist()

    def _close_epoch(self, log: ScalarLog) -> None:
        """Validate, add the epoch to the curve, keep its weights if it is the best, and save."""
        at = self.at
        began = time.perf_counter()
        try:
            scores = self.validate()
        except CheckpointError:  # the detector refuses scores that are not finite
            self._diverged("logits of validation are")
        if not np.isfinite(scores).all():
            self._diverged("logits of validation are")
        labels, generators = labels_of(self.val_set), np.array([sample.generator for sample in self.val_set])
        epoch = Epoch(
            epoch=at.epoch,
            loss=at.loss / at.images,
            balance_loss=at.balance / at.images,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gates=tuple(tuple(g / at.images for g in row) for row in at.gates),
            val_ap=metrics.average_precision(labels, scores),
            val_mean_generator_ap=mean_generator_ap(generators, labels, scores),
            seconds=at.seconds + time.perf_counter() - began,
            train_seconds=at.seconds,
        )
        curve = [*at.curve, epoch.model_dump(mode="json")]
        best = at.best
        if at.epoch == 0 or epoch.val_ap > at.curve[at.best]["val_ap"]:
            best = at.epoch
            self.best = copies(self.trained)
        rate = at.images / at.seconds if at.seconds else math.inf
        self.at = LoopState(epoch=at.epoch + 1, best=best, curve=curve)
        self._log_epoch(log, epoch)
        left = (self.config.epochs - self.at.epoch) * float(np.mean([e["seconds"] for e in curve]))
        until = f", at most {duration(left)} left" if left else ""
        self.progress.say(
            f"epoch {self.at.epoch}/{self.config.epochs}: loss {epoch.loss:.4f}, val AP {epoch.val_ap:.4f} "
            f"(best {curve[best]['val_ap']:.4f}); {rate:.3g} images/s{until}"
        )
        if self.distributed.is_main:
            self._save()

    def validate(self) -> np.ndarray:
        """Logits of the validation images, every process its share."""
        own = range(self.distributed.rank, len(self.val_set), self.distributed.size)
        if self.val_cache is not None:
            logits = kept_logits(self.network, self.val_cache, own, self.config, self.distributed.device)
        else:
            device = str(self.distributed.device)
            detector = Detector(
                self.network, centre_and_whole(self.config), device=device, precision=self.config.precision
            )
            logits = detector.score(windows([self.val_set[i] for i in own], "equalised", self.config.view_seed))
        pairs = self.distributed.gather(list(zip(own, logits.tolist(), strict=True)))
        return np.array([logit for _, logit in sorted(pairs)], dtype=np.float64)

    def _log_epoch(self, log: ScalarLog, epoch: Epoch) -> None:
        values = {
            "loss/epoch": epoch.loss,
            "loss/balance": epoch.balance_loss,
            "val/ap": epoch.val_ap,
            "val/mean_generator_ap": epoch.val_mean_generator_ap,
        }
        blocks = self.network.config.block_indices(self.network.tower.config.depth)
        for block, row in zip(blocks, epoch.gates, strict=False):
            values |= {f"gates/block_{block}/expert_{i}": gate for i, gate in enumerate(row)}
        log.write((epoch.epoch + 1) * self.steps, values)

    def _save(self) -> bool:
        """Save the state; if that fails, say so and keep the older one. Returns whether it was written."""
        tensors: dict[str, Tensor] = {f"trained/{name}": p for name, p in self.trained.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for name, p in self.trained.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[p].items()}
        self._saved = time.monotonic()
        try:
            save_state(self.state, tensors, {"digest": self.digest, "progress": vars(self.at)})
        except CheckpointError as error:
            self.progress.say(f"state not saved: {error}")
            return False
        return True

    @torch.no_grad()
    def _restore(self) -> None:
        """Resume from the state on disk, if there is one."""
        loaded = load_state(self.state)
        self.distributed.wait()  # nobody writes before all have read
        if loaded is None:
            return
        tensors, facts = loaded
        if not isinstance(facts, dict) or "digest" not in facts:
            raise CheckpointError(f"{self.state}: is damaged; delete it to begin the run anew")
        if facts["digest"] != self.digest:
            raise CheckpointError(
                f"{self.state}: holds an unfinished run with other settings or data; finish that one, or give another "
                "--out, or delete it (--fresh) to begin anew"
            )
        try:
            self.at = LoopState(**facts["progress"])
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"trained/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
                own = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in own.items()
                }
        except (KeyError, TypeError, RuntimeError) as error:  # copy_: RuntimeError for another shape
            raise CheckpointError(f"{self.state}: is damaged; delete it to begin the run anew") from error
        self.progress.say(f"continues at epoch {self.at.epoch + 1}, step {self.at.step + 1}, from {self.state}")
