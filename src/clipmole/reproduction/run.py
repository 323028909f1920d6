"""A plan -> the detector, its reports, and `paper.md`, `paper.json`, by the functions that the command line calls too.

It trains and measures nothing by itself, and continues a run that was stopped.
"""

from __future__ import annotations

from pathlib import Path

from clipmole import api
from clipmole.errors import DataError
from clipmole.plumbing.files import foreign_file, write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.reproduction.plan import DETECTOR, PROTOCOLS, TABLE, ExperimentPlan
from clipmole.reproduction.table import PaperTable, paper_page, paper_table

RECORD, PAGE = f"{TABLE}.json", f"{TABLE}.md"


def reproduce(
    plan: ExperimentPlan,
    *,
    device: str = "cpu",
    incomplete: bool = False,
    resamples: int = 1000,
    command: str = "",
    progress: ProgressReporter = SILENT,
) -> PaperTable:
    """Train, evaluate by both protocols, and write `paper.md` and `paper.json` into `plan.out`.

    A detector that is already there is used if it was trained with these settings. A step that was stopped continues.

    Args:
        device: where images are scored; training takes a GPU if there is one.
        incomplete: go on even if data sets are missing or hold other numbers of images; the table then says so.
        resamples: of the bootstrap.
        command: the command that makes the reports again, which they print.

    Raises:
        DataError: the data are not complete, nothing can be trained or measured on, the detector that is there was
            trained otherwise, or `plan.out` holds a table of somebody else's.
    """
    if not plan.train_images or not plan.val_images:
        raise DataError(f"nothing to train on: {'; '.join(plan.problems[:2])}")
    if not any(plan.measured.values()):
        raise DataError(f"{plan.root}: there is nothing to measure on; {plan.problems[-1]}")
    if plan.problems and not incomplete:
        raise DataError(
            f"{len(plan.problems)} of {len(plan.data_sets)} data sets are not as published: "
            f"{'; '.join(plan.problems[:3])}; --dry-run lists them all, --incomplete goes on with what is there"
        )
    check_place(plan.out)
    trained(plan, progress)
    reports = {}
    for name, below in PROTOCOLS.items():
        if plan.measured[name]:
            reports[name] = api.evaluate(
                {TABLE: str(plan.out / DETECTOR)},
                plan.root / below,
                plan.out / name,
                protocol=name,
                backbones={TABLE: plan.config.backbone},
                resamples=resamples,
                gallery=False,
                device=device,
                command=command,
                progress=progress,
            )
    table = paper_table(plan, reports)
    texts = {RECORD: table.model_dump_json(indent=1) + "\n", PAGE: paper_page(table)}
    try:
        write_texts(plan.out, texts)
    except OSError as error:
        raise DataError(f"{plan.out}: cannot be written: {error.strerror}; free space") from error
    return table


def check_place(out: Path) -> None:
    """Raises `DataError` if files that will be replaced are not of an older run."""

    def read_record(path: Path) -> None:
        PaperTable.model_validate(read_json(path.with_name(RECORD), DataError))

    if path := foreign_file(out, {RECORD: read_record, PAGE: read_record}):
        raise DataError(f"{path}: is there and was not written by clipmole reproduce; name another --out")


def trained(plan: ExperimentPlan, progress: ProgressReporter) -> None:
    """Train the detector, unless it is there. Raises `DataError` if it was trained with other settings."""
    folder = plan.out / DETECTOR
    record = folder / "train.json"
    if not record.is_file():
        api.train(plan.config, folder, data=plan.root / "progan", progress=progress)
        return
    found = read_json(record, DataError, f"delete {folder} to train it again")
    kept, data = (found.get(key) or {} for key in ("config", "data"))
    wanted = plan.config.model_dump(mode="json")
    if kept.get("precision") == "float32":
        wanted["precision"] = "float32"  # what a processor that is slow in bfloat16 takes instead
    other = sorted(key for key, value in wanted.items() if kept.get(key, value) != value)
    if other:
        raise DataError(f"{folder}: was trained with another {', '.join(other)}; name another --out, or delete it")
    seen, there = (
        data.get("train", 0) + data.get("val", 0) + len(data.get("skipped", ())),
        plan.train_images + plan.val_images,
    )
    if seen != there:
        raise DataError(
            f"{folder}: was trained on {seen:,} images, and there are {there:,} now; name another --out, or delete it"
        )
    progress.say(f"{folder}: exists and was trained with these settings")
