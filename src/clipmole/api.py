"""The public functions that train, evaluate, calibrate and compare detectors with one call each.

In: names of detectors, settings and data as a user gives them. Out: records; adapter directories, scores and reports
are written on the way. The command line calls the same functions. Each imports what it needs when it is called, so
importing this module imports neither torch nor pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipmole.plumbing.progress import SILENT, ProgressReporter

if TYPE_CHECKING:
    from clipmole.config import TrainConfig
    from clipmole.data import DataSource
    from clipmole.evaluation.recalibrate import Recalibration
    from clipmole.evaluation.records import Comparison, EvaluationReport
    from clipmole.inference.detector import Detector
    from clipmole.inference.runtime import RuntimeName


def train(
    config: TrainConfig | str | Path,
    out: str | Path,
    *,
    extend: str | Path | None = None,
    data: DataSource | None = None,
    cache_dir: str | Path | None = None,
    fresh: bool = False,
    progress: ProgressReporter = SILENT,
) -> Detector:
    """Train a detector on labelled images, and write it as an adapter directory.

    Call it again after an interruption with the same arguments, and it continues where it stopped.

    Args:
        config: the settings, the name of a preset (`clipmole presets` lists them), or a TOML file.
        out: the adapter directory to write. An older one is replaced at the end, when the new one is complete.
        extend: a detector to add an expert to, for a generator that it does not know. What it has learnt stays as it
            is, and its backbone and adapter replace those of `config`.
        data: labelled images with the splits train, val and, for verdicts, calibration: whatever `read_data` takes.
            None: the data that `config` names.
        cache_dir: where the outputs of the frozen blocks are kept. None: `$CLIPMOLE_CACHE`, or `~/.cache/clipmole`.
        fresh: start again even if an unfinished run is there.
        progress: follows the steps of an epoch, gets one line of text per epoch, and may ask the run to stop, which is
            then saved. `ProgressReporter(say=print)` prints the lines.

    Returns:
        The trained detector. It gives verdicts if the data have a calibration split, else only logits.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another.
        DataError: the data are incomplete or cannot be read.
        WeightsError: the backbone cannot be found or does not fit.
        CheckpointError: `out` exists and is not an adapter directory.
        MissingDependency: a library of the extra `train` is not installed.

    Examples:
        >>> from clipmole import TrainConfig, train
        >>> config = TrainConfig(backbone="tiny-vit", epochs=1, batch_size=8, preprocess={"crop_size": 32})
        >>> detector = train(config, "my-detector", data="labelled/manifest.csv")
        >>> detector.score(["photo.png"]).shape
        (1,)
    """
    from clipmole.config import TrainConfig
    from clipmole.training.presets import load_train_config
    from clipmole.training.train import train as run

    settings = config if isinstance(config, TrainConfig) else load_train_config(config)
    return run(settings, out, extend=extend, data=data, progress=progress, cache_dir=cache_dir, fresh=fresh)


def evaluate(
    detectors: Mapping[str, str] | str,
    data: DataSource,
    out: str | Path,
    *,
    protocol: str = "manifest",
    splits: Sequence[str] = (),
    conditions: str | None = None,
    backbones: Mapping[str, str] | None = None,
    resamples: int = 1000,
    gallery: bool = True,
    workers: int = 2,
    batch_size: int | None = None,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    runtime: RuntimeName | Literal["auto"] | None = None,
    command: str = "",
    progress: ProgressReporter = SILENT,
) -> EvaluationReport:
    """Measure detectors on the same labelled images, and write a report.

    Every number is measured twice: on the images as they are stored, and equalised (all encoded again by one rule),
    where file formats and qualities cannot give the classes away. Scores are kept in `out`; call it again after an
    interruption, and it continues. It has many parameters because it is the whole of `clipmole evaluate`.

    Args:
        detectors: short name -> "default", "embedded", an adapter directory, a hub id, `univfd:HEAD`, `hf:ID#CLASS` or
            `python:MODULE:FUNCTION`; or one of these alone.
        data: whatever `read_data` takes, or the folder that holds the protocol's data sets.
        out: the folder for `scores.jsonl` and `report.html`, `.json`, `.csv` and `.md`.
        protocol: "manifest" (the splits of any labelled images), the name of another preset, or a TOML file.
        splits: of a manifest, instead of the protocol's.
        conditions: how images are changed before scoring: a preset or a TOML file, instead of the protocol's.
        backbones: short name of a detector -> its backbone, instead of the one that the detector names.
        resamples: of the bootstrap that gives the 95 % intervals.
        gallery: show the worst mistakes as thumbnails. Turn it off if the images must not be passed on.
        workers: threads that decode and change images.
        batch_size: crops in one forward pass, at most. None: 8 on a CPU, else 32.
        device: "cpu", "cuda", ...
        precision: of the network's arithmetic.
        runtime: what computes clipmole's own detectors, such as "openvino". None: PyTorch, or an export's own.
        command: the command that makes the report again, which it prints.
        progress: follows the images, and gets remarks, such as what had to be unpacked.

    Returns:
        For each detector, set and condition its estimates with intervals, and the paired differences.
        Images that could not be read are in `failed`, data sets that are not there in `missing`.

    Raises:
        DataError: no data set is there, or no image can be read, or `out` cannot be written.
        ConfigError: a name or a setting is unknown.
        WeightsError, CheckpointError: a detector cannot be loaded.

    Examples:
        >>> from clipmole import evaluate
        >>> report = evaluate("embedded", "labelled/manifest.csv", "report", splits=["val"], resamples=10)
        >>> [(each.condition, each.n_real, each.n_generated) for each in report.sets]
        [('as stored', 4, 4), ('equalised', 4, 4)]
    """
    from clipmole.data import Unpacking
    from clipmole.evaluation.evaluate import run_protocol
    from clipmole.evaluation.protocol import load_protocol
    from clipmole.report import check_report_folder, write_report

    folder = Path(out)
    check_report_folder(folder)
    report, table, used = run_protocol(
        load_protocol(protocol),
        {detectors: detectors} if isinstance(detectors, str) else detectors,
        data,
        folder,
        splits=splits,
        how=Unpacking(say=progress.say),
        conditions=conditions,
        backbones=backbones,
        resamples=resamples,
        workers=workers,
        batch_size=batch_size,
        device=device,
        precision=precision,
        runtime=runtime,
        command=command,
        progress=progress,
    )
    write_report(report, table, folder, conditions=used, gallery=gallery)
    return report


def calibrate(
    detector: str | Path,
    data: DataSource,
    out: str | Path,
    *,
    real_only: bool = False,
    split: str | None = None,
    max_false_alarm: float = 0.05,
    max_miss: float = 0.10,
    method: Literal["platt", "temperature"] = "platt",
    by_source: bool | None = None,
    backbone: str | Path | None = None,
    device: str = "cpu",
    progress: ProgressReporter = SILENT,
) -> Recalibration:
    """Set a detector's thresholds on your own images, and write a copy of the detector that uses them.

    It has many parameters because it is the whole of `clipmole calibrate`.

    Args:
        detector: "default", "embedded", an adapter directory, or a hub id `owner/name`. It stays as it is.
        data: labelled images, whatever `read_data` takes; with `real_only` also a folder of photographs.
        out: the adapter directory to write.
        real_only: all images are photographs. Only the threshold above which an image is called AI-generated moves;
            `max_miss` and `method` then mean nothing.
        split: of the data. None: all images.
        max_false_alarm: highest share of photographs that may be called AI-generated, between 0 and 1.
        max_miss: highest share of generated images that may be called photographs, between 0 and 1.
        method: how the probability is fitted to the logits.
        by_source: set thresholds over sources of photographs, so that they hold for a new source. None: if the data
            name enough sources.
        backbone: the backbone, instead of the one that the adapter names.
        device: "cpu", "cuda", ...
        progress: follows the images, and gets remarks, such as what had to be unpacked.

    Returns:
        The old and the new calibration, and the shares of these images that either calls AI-generated. With
        `real_only`, photographs that could not be read are in `failed`.

    Raises:
        DataError: there are too few images of a class for such a threshold, or a label is wrong.
        ImageError: an image cannot be read (with `real_only` it is left out instead).
        CheckpointError, WeightsError: the detector cannot be loaded, or `out` cannot be replaced.

    Examples:
        >>> from clipmole import calibrate
        >>> result = calibrate("embedded", "photos", "my-copy", real_only=True, max_false_alarm=0.1)
        >>> result.n_real, result.after.false_alarm <= 0.1
        (20, True)
        >>> 0 <= result.new.thresholds.real <= result.new.thresholds.generated <= 1
        True
    """
    import os

    from clipmole.data import Folders, Unpacking, read_data
    from clipmole.evaluation.recalibrate import recalibrate, recalibrate_on_photographs
    from clipmole.images.discovery import find_images

    how = Unpacking(say=progress.say)
    if not real_only:
        samples = read_data(data, split, how=how)
        return recalibrate(
            detector,
            samples,
            out,
            max_false_alarm=max_false_alarm,
            max_miss=max_miss,
            method=method,
            by_source=by_source,
            backbone=backbone,
            device=device,
            progress=progress,
        )
    loose = not isinstance(data, Folders) and os.path.isdir(data)
    photographs = list(find_images([str(data)])) if loose else read_data(data, split, how=how)
    return recalibrate_on_photographs(
        detector, photographs, out, max_false_alarm=max_false_alarm, backbone=backbone, device=device, progress=progress
    )


def compare(
    configs: Mapping[str, str],
    data: str | Path,
    out: str | Path,
    *,
    test_data: str | Path | None = None,
    splits: Sequence[str] = ("test",),
    seeds: int = 3,
    rates: Sequence[float] = (),
    backbone: str | None = None,
    resamples: int = 1000,
    progress: ProgressReporter = SILENT,
) -> Comparison:
    """Train several configurations over several seeds on the same data, and compare them.

    Call it again after an interruption, and it continues with the runs that are missing. `clipmole compare --plan`
    takes a TOML file for comparisons that need more than these arguments. It has many parameters because it is the
    whole of `clipmole compare` without one.

    Args:
        configs: short name -> a preset or a TOML file; two or more. The first is what the others are compared with.
        data: labelled images with the splits train, val and, if there, calibration.
        out: the folder for the trained runs and for the tables, `comparison.json` and `comparison.md`.
        test_data: labelled images to report on. None: those of `data`.
        splits: the splits to report on.
        seeds: how many.
        rates: learning rates, of which the best on val is taken for each configuration. (): each keeps its own.
        backbone: instead of the backbones that the configurations name.
        resamples: of the bootstrap that gives the 95 % intervals.
        progress: follows steps and images, and gets one line of text per epoch.

    Returns:
        For each configuration its average precision with intervals, and the paired differences.

    Raises:
        DataError: a split holds no images. Raised before any training.
        ConfigError: a configuration is unknown, or a setting out of range.

    Examples:
        >>> from clipmole import compare
        >>> both = {"mole": "tiny.toml", "probe": "tiny-probe.toml"}
        >>> found = compare(both, "labelled/manifest.csv", "comparison", seeds=1, resamples=10)
        >>> [method.name for method in found.methods]
        ['mole', 'probe']
    """
    from clipmole.training.compare import compare as run
    from clipmole.training.comparison_plan import plan_of

    plan = plan_of(configs, splits=tuple(splits), seeds=tuple(range(seeds)), rates=tuple(rates))
    return run(
        plan,
        data,
        Path(out),
        test_data=test_data,
        backbone=backbone,
        resamples=resamples,
        progress=progress,
    )
