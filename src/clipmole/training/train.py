"""Labelled images and a configuration -> an adapter directory, with its record, model card and page.

In: `TrainConfig` and images of the splits train, val and, for calibrated verdicts, calibration. Out: an adapter
directory. It never reads other splits. An unfinished run is kept in a folder beside it, and the
same call continues it. It knows nothing of terminals: progress goes to a `ProgressReporter`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipmole.calibration import Calibration
from clipmole.config import LOCATION_SETTINGS, TrainConfig
from clipmole.data import VARIANTS, DataSource, labels_of, windows
from clipmole.data.sample import Sample
from clipmole.data.training_set import TrainingData, training_data
from clipmole.errors import CheckpointError, ConfigError, DataError
from clipmole.evaluation.estimates import report_table
from clipmole.evaluation.evaluate import detector_info
from clipmole.evaluation.recalibrate import check_calibration_set, fit_detector_calibration, promises
from clipmole.evaluation.records import EvaluationReport
from clipmole.evaluation.scores import ScoreTable
from clipmole.inference.detector import Detector
from clipmole.inference.pytorch import bfloat16_is_slow
from clipmole.models.adapter import backbone_for, check_copy, check_target, save_adapter
from clipmole.models.backbone import Backbone, load_backbone
from clipmole.models.hyperdet import HyperDetNetwork
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.environment import environment
from clipmole.plumbing.files import why_no_room
from clipmole.plumbing.progress import SILENT, ProgressReporter, Say
from clipmole.plumbing.seeding import sample_rng, torch_seeded
from clipmole.plumbing.text import escaped
from clipmole.report.training import training_page
from clipmole.training.distributed import Distributed
from clipmole.training.extend import Base, kept_tokens, thresholds_changed
from clipmole.training.families import families_of, fit_families
from clipmole.training.loop import Epoch, TrainingLoop
from clipmole.training.model_card import model_card
from clipmole.training.prefix_cache import PrefixCache, fixed_cache, prefix_cache_folder, prefix_digest
from clipmole.training.sampling import check_batch

STATE, LOG = "state.safetensors", "tensorboard"
PAGE_BYTES = 2**20  # of the page, the record and the card of a run, about
RESAMPLES = 200  # of the bootstrap for the page
MOST_SCORED = 200  # validation images of a class that the finished detector scores


def run_folder(out: str | Path) -> Path:
    """Where an unfinished run that will become the adapter directory `out` is kept, with TensorBoard's files."""
    return Path(out).with_name(Path(out).name + ".run")


def run_digest(config: TrainConfig, backbone: Backbone, lines: Sequence[str], base: Base | None = None) -> str:
    """sha256 of everything that a run's weights depend on: settings, backbone, what it extends, and data in their
    order."""
    extended = [base.digest] if base else []
    what = json.dumps([config.run_settings(), backbone.sha256, *extended, *lines], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()


def check_room(out: str | Path, network: MoLENetwork) -> None:
    """Raise `CheckpointError` if the state of a run and its adapter directory cannot be written.

    Two states of four values a trained parameter (two of them AdamW's) are on the disk for a moment, and the adapter.
    """
    trained = sum(parameter.numel() * parameter.element_size() for parameter in network.trained_parameters().values())
    if reason := why_no_room(run_folder(out), 2 * 4 * trained + trained + PAGE_BYTES):
        raise CheckpointError(f"{run_folder(out)}: {reason}")


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    extend: str | Path | None = None,
    data: DataSource | None = None,
    backbone: Backbone | str | Path | None = None,
    progress: ProgressReporter = SILENT,
    cache_dir: str | Path | None = None,
    fresh: bool = False,
    save_seconds: float = 600.0,
    with_report: bool = True,
) -> Detector:
    """Train an adapter and write its directory.

    A run that was killed continues when it is called again with the same settings and data, and ends with the weights
    that it would have had. Called in several processes (`accelerate launch`), they train one network together.

    It is long because it builds all parts of a run in order, and checks early for anything that would stop it. It has
    many parameters because it is the whole of `clipmole train`.

    Args:
        out: the adapter directory; an older one is replaced as a whole at the end, and only then.
        extend: the detector to add an expert to; what it has learnt stays as it is. Its backbone, adapter and
            preprocessing replace the configuration's.
        data: instead of the data that the configuration names.
        backbone: instead of `config.backbone`, or of the extended detector's; the tower of a loaded one is changed
            in place.
        progress: follows the steps of an epoch, and gets one line per epoch. Once it asks to stop, the state of the run
            is kept and `Stopped` raised.
        cache_dir: of the prefix cache; None: `prefix_cache_folder()`.
        fresh: begin anew even if an unfinished run is there.
        save_seconds: how often the state of the run is saved within an epoch; it always is after one.
        with_report: calibrate at the end, and score the validation images once more for the page; False: neither.

    Returns the trained detector, calibrated if there is a calibration split (in the first process; the
    others return it without a calibration).
    Raises `DataError`, `ConfigError`, `WeightsError`, `CheckpointError` or `MissingDependency` before any training
    where it can.
    """
    base = Base.open(extend) if extend is not None else None
    if base is None:
        check_target(out)
    else:
        check_copy(base.folder, out)
        config = base.settings(config)
    distributed = Distributed()
    config = config_for_processor(config, distributed, progress)
    if not distributed.is_main:
        progress = SILENT
        distributed.wait()  # while the first process unpacks
    chosen = training_data(config, data, progress)
    if distributed.is_main:
        distributed.wait()

    families = families_of(config.families, chosen)
    loaded, network = start(config, base, backbone)
    network = network.to(distributed.device)
    announce(network, chosen, base, progress.say)
    check_room(out, network)
    folder, digest = run_folder(out), run_digest(config, loaded, chosen.lines, base)
    if fresh and distributed.is_main:
        (folder / STATE).unlink(missing_ok=True)
    distributed.wait()
    with ThreadPoolExecutor(distributed.workers) as pool:
        cache = val_cache = None
        if config.cached_views:
            key = prefix_digest(network, loaded.sha256, chosen.lines[: len(chosen.train)], config)
            kept = Path(cache_dir) if cache_dir else prefix_cache_folder()
            workers: Any = {"distributed": distributed, "pool": pool, "progress": progress}
            cache = PrefixCache(network, chosen.train, config, kept, key, **workers)
            val_lines = chosen.lines[len(chosen.train) : len(chosen.train) + len(chosen.val)]
            val_cache = fixed_cache(
                network, loaded.sha256, chosen.val, config, kept, "equalised", lines=val_lines, **workers
            )
        run = TrainingLoop(
            network,
            chosen.train,
            chosen.val,
            config,
            cache=cache,
            val_cache=val_cache,
            replay=base.replay(network, config) if base is not None else None,
            state=folder / STATE,
            digest=digest,
            log=folder / LOG / digest[:12],
            distributed=distributed,
            pool=pool,
            progress=progress,
            save_seconds=save_seconds,
        )
        curve, best = run.fit()
        tokens = kept_tokens(network, chosen.train, config, pool, base)
    if not distributed.is_main:
        return Detector(network, config.preprocess, None, escaped(Path(out).name), device=str(distributed.device))
    fit_families(network, families, chosen, config, progress)
    record = make_record(config, loaded, network, chosen, curve, best, distributed, base)
    try:
        if with_report:
            detector = finish(out, record, network, loaded, config, chosen, progress.say, base, tokens)
        else:
            save_adapter(
                out, network, loaded, config.preprocess, None, record, model_card(record, None, ()), tokens=tokens
            )
            detector = Detector(
                network, config.preprocess, None, escaped(Path(out).name), device=str(distributed.device)
            )
    except CheckpointError as error:
        if not (folder / STATE).exists():
            raise
        raise CheckpointError(
            f"{error}; the run is kept in {folder / STATE}: free space and give the same command again to finish it"
        ) from error
    (folder / STATE).unlink(missing_ok=True)
    return detector


def config_for_processor(config: TrainConfig, distributed: Distributed, progress: ProgressReporter) -> TrainConfig:
    """The configuration, with float32 in place of bfloat16 where a processor is slow in that.

    Raises `ConfigError` if the batch cannot be divided among the processes.
    """
    check_batch(config, distributed.size)
    if config.precision != "bfloat16" or not any(distributed.gather([bfloat16_is_slow(str(distributed.device))])):
        return config
    if distributed.is_main:
        progress.say("this processor has no fast bfloat16: the run computes in float32")
    return config.model_copy(update={"precision": "float32"})


def start(
    config: TrainConfig, base: Base | None, backbone: Backbone | str | Path | None
) -> tuple[Backbone, MoLENetwork]:
    """The backbone, and the network that a run begins with: a new one, or that of `base` with one more extension."""
    if base is not None:
        loaded = backbone_for(base.name, base.folder, base.config.backbone, backbone)
    else:
        loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone or config.backbone)
    with torch_seeded(config.seed):
        if base is not None:
            return loaded, base.grow(loaded.tower, config.mole)
        if config.mole.families:
            raise ConfigError("mole.families: is written by training; ask for it with families = true")
        if config.mole.drawn:
            raise ConfigError(
                "mole.drawn: is fitted to a detector after its training, not trained with it; leave it out"
            )
        if config.hypernetwork:
            return loaded, HyperDetNetwork(loaded.tower, config.mole)
        return loaded, MoLENetwork(loaded.tower, config.mole, config.full_finetune)


def announce(network: MoLENetwork, chosen: TrainingData, base: Base | None, say: Say) -> None:
    """Announce what will be trained on which data, and whether there will be verdicts."""
    count = sum(parameter.numel() for parameter in network.trained_parameters().values())
    images = f"{len(chosen.train)} training images, {len(chosen.val)} validation images"
    say(f"{images}; {count:,} parameters are trained")
    if base is not None:
        kept = "no tokens of older images to replay" if base.tokens is None else f"{len(base.tokens)} images to replay"
        say(f"{base.name} is extended, and has {kept}")
    if chosen.calibration:
        try:
            check_calibration_set(chosen.calibration)
        except DataError as error:
            say(f"there will be no verdicts: {error}")


def make_record(
    config: TrainConfig,
    backbone: Backbone,
    network: MoLENetwork,
    chosen: TrainingData,
    curve: Sequence[Epoch],
    best: int,
    distributed: Distributed,
    base: Base | None = None,
) -> dict[str, Any]:
    """The content of `train.json`: how the run was made, and its results."""
    return {
        "config": config.model_dump(mode="json", exclude=set(LOCATION_SETTINGS)),
        "backbone": {"id": backbone.id, "revision": backbone.revision, "sha256": backbone.sha256},
        "data": chosen.record,
        "trained_parameters": sum(p.numel() for p in network.trained_parameters().values()),
        "tower_parameters": sum(p.numel() for p in network.tower.parameters()),
        "adapted_blocks": list(network.config.block_indices(network.tower.config.depth)),
        "best_epoch": best,
        "curve": [epoch.model_dump() for epoch in curve],
        "environment": environment() | {"device": str(distributed.device), "processes": distributed.size},
        **({"families": network.config.families.model_dump()} if network.config.families else {}),
        **({"history": base.history()} if base is not None else {}),
    }


def finish(
    out: str | Path,
    record: dict[str, Any],
    network: MoLENetwork,
    backbone: Backbone,
    config: TrainConfig,
    chosen: TrainingData,
    say: Say,
    base: Base | None = None,
    tokens: torch.Tensor | None = None,
) -> Detector:
    """Calibrate, score the validation images once more for the page, and write the adapter directory.

    It has many parameters because a directory records everything that went into a run and its results.

    Args:
        base: the detector that was extended.
        tokens: to be kept for replay.
    """
    device = str(next(network.parameters()).device)
    options: Any = {"device": device, "precision": config.precision}
    detector = Detector(network, config.preprocess, **options)
    calibration: Calibration | None = None
    left_out: dict[str, float] = {}
    try:
        if chosen.calibration:
            calibration, left_out = fit_detector_calibration(detector, chosen.calibration, config.seed)
    except DataError as error:  # the weights are worth keeping anyway
        say(f"not calibrated: {error}")
    detector = Detector(network, config.preprocess, calibration, escaped(Path(out).name), **options)
    report, table = score_validation(detector, chosen.val, config.seed)
    findings = [better_than_chance(report), *verdicts_promised(calibration, left_out)]
    findings += thresholds_changed(base.calibration, calibration) if base else []
    page = training_page(record, report, table)
    card = model_card(record, calibration, findings)
    save_adapter(out, network, backbone, config.preprocess, calibration, record, card, page=page, tokens=tokens)
    for line in findings:
        say(line)
    return detector


def better_than_chance(report: EvaluationReport) -> str:
    """One sentence on the validation images, equalised: is the detector better than chance, and by how much?"""
    found = next(each for each in report.sets if each.condition == "equalised")
    auroc = found.estimates["auroc"]
    if auroc.value == 1:  # the bootstrap's interval has no width: that of independent pairs (Clopper and Pearson 1934)
        auroc = auroc.model_copy(update={"low": 0.025 ** (1 / min(found.n_real, found.n_generated))})
    verdict = "that is better than chance" if auroc.low > 0.5 else "NOT shown to be better than chance"
    return (
        f"Of the {found.n_real} photographs and {found.n_generated} generated images for validation, equalised, a "
        f"generated one scores above a photograph in {100 * auroc.value:.1f} % of pairs "
        f"[{100 * auroc.low:.1f}, {100 * auroc.high:.1f}], where chance gives 50 %: {verdict}. The epoch was chosen by "
        "these images, so it looks too good."
    )


def verdicts_promised(calibration: Calibration | None, left_out: Mapping[str, float]) -> list[str]:
    """What to expect of the verdicts, one sentence each."""
    if calibration is None:
        return ["It gives logits and no verdicts, until clipmole calibrate sets its thresholds on enough images."]
    return promises(calibration, left_out)


def score_validation(detector: Detector, val: Sequence[Sample], seed: int) -> tuple[EvaluationReport, ScoreTable]:
    """Estimates and logits of at most `MOST_SCORED` validation images of a class, by the finished detector."""
    rng = sample_rng(seed, "look again")
    chosen = [rng.permutation(np.flatnonzero(labels_of(val) == label))[:MOST_SCORED] for label in (0, 1)]
    val = [val[i] for i in sorted(np.concatenate(chosen).tolist())]
    logits = np.array([[detector.score(windows(val, variant, seed)) for variant in VARIANTS]], dtype=np.float64)
    table = ScoreTable(tuple(val), np.array(["val"] * len(val)), (detector.name,), VARIANTS, logits)
    reports, _ = report_table(table, {detector.name: detector.calibration}, RESAMPLES, seed)
    info = detector_info(detector.name, detector)
    return EvaluationReport(title="Validation", detectors=(info,), sets=reports), table
