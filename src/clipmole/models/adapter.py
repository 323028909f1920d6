"""Adapter directory <-> detector network.

    config.json          format version, backbone (id, revision, sha256), MoLE, preprocessing
    adapter.safetensors  what was trained: LoRAs, routers, extensions, companion, heads (or a tower that was fine-tuned)
    calibration.json     probability and thresholds; only if the detector is calibrated
    train.json           how it was trained; only if clipmole trained it
    train.html           the same as a page, with images of the data; never uploaded; only if clipmole trained it
    README.md            model card
    local.json           a hint where the backbone's directory was during training; never uploaded
    replay.safetensors   tokens of training images to be replayed when it is extended; never uploaded; usually absent

A directory is written under another name and then renamed, so nobody ever reads a half-written one. No pickle is read.
This module knows nothing of images or verdicts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clipmole.calibration import Calibration
from clipmole.config import Config, MoLEConfig, PreprocessConfig, first_problem
from clipmole.errors import CheckpointError, ConfigError, WeightsError
from clipmole.models.backbone import PACKAGED_DETECTORS, PRESETS, Backbone, is_installed, load_backbone
from clipmole.models.hub import HUB_ID, hub_files
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.files import is_odd_file, replacing_folder, why_not_replaceable
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.text import escaped, first_line

FORMAT_VERSION = 1
DEFAULT = "default"
# Detectors that come with clipmole, the best first -> the backbones that they need.
PACKAGED = {"mole-vit-b-16": "clip-vit-b-16-int8", "embedded": "embedded"}
# Backbone of an adapter -> another with nearly the same weights, on which the adapter may be used on request.
SIBLINGS = {"clip-vit-b-16-int8": "vit-b-16"}  # weights in int8 -> the float32 weights that were rounded to them
CONFIG, ADAPTER, CALIBRATION, TRAIN, PAGE, CARD, LOCAL, REPLAY = (
    "config.json",
    "adapter.safetensors",
    "calibration.json",
    "train.json",
    "train.html",
    "README.md",
    "local.json",
    "replay.safetensors",
)
RECALIBRATED = "## Calibrated again"  # heading of the model card's section on a later calibration


class BackboneReference(Config):
    """The tower that an adapter belongs to; `sha256` is that of the weights (`backbone.tower_sha256`)."""

    id: str
    revision: str | None = None
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class AdapterConfig(Config):
    """The content of `config.json` in an adapter directory."""

    format_version: int = FORMAT_VERSION
    backbone: BackboneReference
    mole: MoLEConfig
    preprocess: PreprocessConfig
    full_finetune: bool = False


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter directory.

    Attributes:
        name: the detector's name for people: "embedded", the hub id, or the directory's name.
        digest: `adapter_digest` of the directory.
        config: the content of its `config.json`.
        network: in eval mode, float32.
        calibration: None if it is not calibrated.
    """

    name: str
    digest: str
    config: AdapterConfig
    network: MoLENetwork
    calibration: Calibration | None


def check_target(directory: str | Path) -> Path:
    """The path of a folder where an adapter directory may be written: absent, empty, or an adapter directory alone.

    Raises `CheckpointError` for any other folder, and if nothing can be written there. Nothing is changed.
    """
    target = Path(directory)
    files: dict[str, Callable[[Path], object] | None] = {
        CONFIG: lambda path: read_config(path.parent),
        CALIBRATION: lambda path: read_calibration(path.parent),
        ADAPTER: None,
        TRAIN: lambda path: read_json(path, CheckpointError),
        PAGE: None,
        CARD: None,
        LOCAL: None,
        REPLAY: None,
    }
    if reason := why_not_replaceable(target, "an adapter directory", files):
        raise CheckpointError(f"{target}: {reason}")
    return target


def save_adapter(
    directory: str | Path,
    network: MoLENetwork,
    backbone: Backbone,
    preprocess: PreprocessConfig,
    calibration: Calibration | None = None,
    train: dict[str, Any] | None = None,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
    page: str | None = None,
    tokens: torch.Tensor | None = None,
) -> None:
    """Write an adapter directory, replacing an older one as a whole.

    It has many parameters because nearly every one is a file of the directory.

    Args:
        directory: to be written.
        network: the trained network.
        backbone: the backbone that it was trained on.
        preprocess: how it looks at images.
        calibration: None: it gives logits alone.
        train: the record of the training, for JSON.
        card: the model card, Markdown.
        dtype: of the stored tensors; loading turns them into float32.
        page: HTML about the training.
        tokens: tokens of training images before the first adapted block, (n, T, d) bfloat16, to be replayed.

    Raises `CheckpointError` if `directory` exists and is not an adapter directory, or cannot be written.
    """
    target = check_target(directory)
    reference = BackboneReference(id=backbone.id, revision=backbone.revision, sha256=backbone.sha256)
    config = AdapterConfig(
        backbone=reference, mole=network.config, preprocess=preprocess, full_finetune=network.full_finetune
    )
    tensors = {n: p.detach().to("cpu", dtype).contiguous() for n, p in network.adapter_parameters().items()}
    texts: dict[str, str | None] = {
        CONFIG: config.model_dump_json(indent=2),
        CALIBRATION: calibration.model_dump_json(indent=2) if calibration else None,
        TRAIN: json.dumps(train, indent=2) if train else None,
        PAGE: page,
        CARD: card,
        LOCAL: json.dumps({"backbone": str(backbone.directory)}) if backbone.directory else None,
    }

    with _replacing(target) as folder:
        save_file(tensors, folder / ADAPTER)
        if tokens is not None:
            save_file({"tokens": tokens.contiguous()}, folder / REPLAY)
            (folder / REPLAY).chmod(0o600)  # made from the owner's images, so nobody else may read it
        for name, text in texts.items():
            if text is not None:
                (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")
        # safetensors writes for the owner alone; give the file the permissions of the configuration.
        (folder / ADAPTER).chmod((folder / CONFIG).stat().st_mode)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A directory to be filled, which at the end replaces `target` as a whole or not at all."""
    try:
        with replacing_folder(target) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target}: cannot be written: {error}; nothing was changed") from error


def with_calibration(source: Path, directory: str | Path, calibration: Calibration, remarks: Sequence[str]) -> None:
    """Write a copy of the adapter directory `source` with another calibration, replacing an older copy as a whole.

    The weights and settings are copied byte for byte.

    Args:
        source: the adapter directory to copy.
        directory: to be written.
        calibration: the new one.
        remarks: lines on it for the last section of the model card, which replaces one from an earlier calibration.

    Raises `CheckpointError` if `source` is not an adapter directory, or if `directory` is `source`, exists and is
    not an adapter directory, or cannot be written.
    """
    read_config(source)
    target = check_copy(source, directory)

    with _replacing(target) as folder:
        for name in (CONFIG, ADAPTER, TRAIN, LOCAL, REPLAY):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)  # the content, since files in the hub's cache are links
        (folder / CALIBRATION).write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = (source / CARD).read_text(encoding="utf-8") if (source / CARD).is_file() else ""
        section = [RECALIBRATED, "", "This replaces what is said above of probabilities and thresholds.", ""]
        above = card.split(RECALIBRATED)[0].rstrip()
        lines = [*([above, ""] if above else []), *section, *(f"- {remark}" for remark in remarks)]
        (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_copy(source: Path, directory: str | Path) -> Path:
    """The path of a folder where a copy of the adapter directory `source` may be written.

    Raises `CheckpointError` as `check_target` does, and if it is `source` itself.
    """
    target = check_target(directory)
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{target}: is the detector itself, which stays as it is; name another folder")
    return target


def default_detector() -> str:
    """The packaged detector that "default" stands for: the first of `PACKAGED` whose backbone is installed."""
    return next(name for name, backbone in PACKAGED.items() if is_installed(backbone))


def fallback_remark() -> str | None:
    """A line for the user if the best packaged detector cannot be used; None if it can be used."""
    best, used = next(iter(PACKAGED)), default_detector()
    if used == best:
        return None
    package = PRESETS[PACKAGED[best]].package
    return (
        f"The default detector {best} needs the package {str(package).replace('_', '-')}, which is not installed; "
        f"using {used}, which is smaller and less accurate."
    )


def find_adapter(name: str | Path, revision: str | None = None, cache_dir: Path | None = None) -> tuple[str, Path]:
    """The name for people and the folder of a detector.

    Args:
        name: "default", a packaged detector, an adapter directory, or a hub id.
        revision: of the adapter on the hub.
        cache_dir: where hub files are kept; None: huggingface_hub's cache.

    Raises:
        CheckpointError: there is no such detector.
        WeightsNotFound: it cannot be fetched from the hub.
    """
    name = default_detector() if name == DEFAULT else name
    if name in PACKAGED:
        return str(name), PACKAGED_DETECTORS / name / "adapter"
    path = Path(name)
    if path.is_dir():
        return escaped(path.resolve().name), path
    if str(name) in PRESETS:
        raise CheckpointError(
            f"{name}: is a backbone, not a detector; train an adapter for it (clipmole train) and give its directory"
        )
    if isinstance(name, str) and HUB_ID.fullmatch(name) and not path.exists():
        folder = hub_files(
            name,
            [CONFIG, ADAPTER],
            optional=[CALIBRATION, TRAIN, CARD],
            revision=revision,
            cache_dir=cache_dir,
        )
        return name, folder
    known = ", ".join([DEFAULT, *PACKAGED])
    raise CheckpointError(f"{name}: no such detector; give {known}, an adapter directory, or a hub id owner/name")


def read_config(folder: Path) -> AdapterConfig:
    """`config.json` of an adapter directory; its format version is checked before anything else.

    Raises `CheckpointError`.
    """
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder}: is not an adapter directory: it has no {CONFIG}")
    values = read_json(path, CheckpointError, f"give an adapter directory, whose {CONFIG} clipmole wrote")
    version = values.get("format_version") if isinstance(values, dict) else None
    if version is None:
        raise CheckpointError(f"{path}: is not an adapter's configuration: it has no format_version")
    if type(version) is not int or version != FORMAT_VERSION:  # true == 1 too
        raise CheckpointError(
            f"{path}: format version {version}, and this clipmole reads {FORMAT_VERSION}; update clipmole"
        )
    try:
        return AdapterConfig.parse(values, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def read_calibration(folder: Path) -> Calibration | None:
    """`calibration.json` of an adapter directory; None if there is none. Raises `CheckpointError` if it is damaged."""
    path = folder / CALIBRATION
    if not path.exists():
        return None
    cure = "fit the calibration again"
    try:
        return Calibration.model_validate(read_json(path, CheckpointError, cure))
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged ({first_problem(error)}); {cure}") from error


def read_tensors(path: Path, expected: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter file, float32.

    Args:
        path: the file.
        expected: parameters whose names and shapes the tensors must have, all of them and no others.

    Raises `CheckpointError` if they do not, if a value is not finite, or if the file cannot be read.
    """
    if is_odd_file(path):
        raise CheckpointError(f"{path}: is a pipe or a device, not a file; fetch or train the adapter again")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; fetch or train the adapter again") from error
    for problem, names in (
        ("misses", expected.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - expected),
    ):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise CheckpointError(f"{path}: {problem} {len(names)} tensors: {first}; it does not fit its {CONFIG}")
    for name, parameter in expected.items():
        if tensors[name].shape != parameter.shape:
            given, needed = tuple(tensors[name].shape), tuple(parameter.shape)
            raise CheckpointError(f"{path}: {name} is {given}, not {needed}; it does not fit its {CONFIG}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {tensors[name].dtype}, not floating-point weights")
        tensors[name] = tensors[name].to(torch.float32, copy=True)  # aligned: the order of sums depends on alignment
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite; train the adapter again")
    return tensors


def read_kept_tokens(folder: Path) -> torch.Tensor | None:
    """The tokens (n, T, d), bfloat16, that an adapter directory keeps for replay; None if it keeps none.

    Raises `CheckpointError` if the file is damaged.
    """
    path = folder / REPLAY
    if not path.is_file():
        return None
    try:
        tokens = load_file(path)["tokens"]
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; delete it to extend without replay") from error
    if tokens.dim() != 3 or tokens.dtype != torch.bfloat16 or not tokens.isfinite().all():
        raise CheckpointError(f"{path}: holds no tokens; delete it to extend without replay")
    return tokens


def backbone_for(
    label: str,
    folder: Path,
    wanted: BackboneReference,
    backbone: str | Path | Backbone | None = None,
    cache_dir: Path | None = None,
    siblings: bool = False,
) -> Backbone:
    """The backbone that the adapter directory `folder` was made for.

    Args:
        label: the name of the detector, for messages.
        folder: the adapter directory.
        wanted: the backbone in its configuration.
        backbone: the name of another backbone to load instead, or a backbone that is already loaded.
        cache_dir: where hub files are kept; None: huggingface_hub's cache.
        siblings: whether `backbone` may be one of `SIBLINGS`.

    Raises:
        CheckpointError: the backbone has other weights.
        WeightsError: the backbone cannot be loaded.
    """
    if isinstance(backbone, Backbone):
        loaded: Backbone | None = backbone
    else:
        loaded = backbone_as_trained(folder, wanted) if backbone is None else None
    try:
        revision = None if backbone else wanted.revision
        loaded = loaded or load_backbone(backbone or wanted.id, revision=revision, cache_dir=cache_dir)  # type: ignore[arg-type]
    except WeightsError as error:
        if backbone is None and wanted.id not in PRESETS and not HUB_ID.fullmatch(wanted.id):
            raise CheckpointError(
                f"{label}: was made for the backbone directory {wanted.id!r} "
                f"(weights sha256 {wanted.sha256[:12]}...); give its path with backbone= or --backbone"
            ) from error
        raise
    related = siblings and backbone is not None and SIBLINGS.get(wanted.id) == loaded.id
    if loaded.sha256 != wanted.sha256 and not related:
        raise CheckpointError(
            f"{label}: was made for backbone {wanted.id} with weights sha256 {wanted.sha256[:12]}..., "
            f"and {loaded.id if isinstance(backbone, Backbone) else backbone or wanted.id} has "
            f"{loaded.sha256[:12]}...; give the right backbone"
        )
    return loaded


def load_adapter(
    name: str | Path,
    backbone: str | Path | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Adapter:
    """Load a detector and the backbone that it was made for.

    Args:
        name: "default", a packaged detector, an adapter directory, or a hub id `owner/name`.
        backbone: where to find the backbone, instead of where the adapter says. It must have the same weights, or be in
            `SIBLINGS`. How good the adapter is on a sibling was not measured: its name then says so, and it gives
            logits without probabilities and verdicts.
        revision: of the adapter on the hub.
        cache_dir: where hub files are kept; None: huggingface_hub's cache.

    Raises:
        CheckpointError: there is no such detector, or it is damaged or does not fit its backbone.
        WeightsError: the backbone cannot be loaded.
    """
    label, folder = find_adapter(name, revision, cache_dir)
    config = read_config(folder)
    loaded = backbone_for(label, folder, config.backbone, backbone, cache_dir, siblings=True)
    related = loaded.sha256 != config.backbone.sha256
    network = MoLENetwork.with_weights(
        loaded.tower,
        config.mole,
        lambda names: read_tensors(folder / ADAPTER, names),
        full_finetune=config.full_finetune,
    )
    if related:
        return Adapter(f"{label} on {loaded.id} (not measured)", adapter_digest(folder), config, network, None)
    return Adapter(label, adapter_digest(folder), config, network, read_calibration(folder))


def backbone_as_trained(folder: Path, wanted: BackboneReference) -> Backbone | None:
    """The backbone from the directory that `local.json` names, if its weights are still those; else None."""
    if not (folder / LOCAL).exists():
        return None
    try:
        source = Path(read_json(folder / LOCAL, CheckpointError)["backbone"])
        loaded = load_backbone(source) if source.is_dir() else None
    except (CheckpointError, WeightsError, KeyError, TypeError, ValueError):
        return None
    return loaded if loaded and loaded.sha256 == wanted.sha256 else None


def adapter_digest(folder: Path) -> str:
    """sha256 over `config.json` (which has the backbone's sha256), `adapter.safetensors` and `calibration.json`."""
    digest = hashlib.sha256()
    for file in (CONFIG, ADAPTER, CALIBRATION):
        if (folder / file).is_file():
            digest.update((folder / file).read_bytes())
    return digest.hexdigest()


def push_adapter(directory: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload an adapter directory to the Hugging Face Hub in one commit; returns the commit's URL.

    Files that are made from your own images, and paths on your disk, are not uploaded.

    Args:
        directory: the adapter directory.
        repo_id: "owner/name"; it is created if it does not exist.
        private: whether a new repository is private.
        token: of the hub; None: the one you are logged in with.

    Raises `CheckpointError` if it is not an adapter directory, or cannot be uploaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(directory)
    read_config(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[CONFIG, ADAPTER, CALIBRATION, TRAIN, CARD],
            commit_message="Upload clipmole adapter",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{repo_id}: could not be uploaded: {reason}") from error
    return commit.commit_url
