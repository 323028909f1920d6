"""Photographs -> pairs of a photograph and its twin, which a small autoencoder has decoded: a training set.

In: photographs. Out: a folder of JPEG files and a manifest that `clipmole train` reads. It knows nothing of detectors.

    twin = jpeg_own(mix(photo, D(E(photo))))        both: jpeg_q(resize_s(.)) with the same s and q

D and E are autoencoders that are trained on these photographs, one for each way of upsampling. A window is cut at the
grid of the photograph's file, as it is stored there, and its twin is encoded with that file's own quantisation tables
and subsampling, on the same grid: so size, format, quality and content are the same, and only the way the pixels were
made differs. Then both are turned upright, resized and encoded alike. Mixing, if asked for, keeps a share of the
photograph in the twin:

    pixel   photo + r (twin - photo), r drawn from a range
    dct     in the DCT of each block of 8 x 8 a drawn set of coefficients, the same in all blocks, is the twin's

Sources: twins by an autoencoder are AutoGAN's (arXiv 1907.06515); pairs that agree in format and content, and mixing in
pixels and frequencies, are those of "Aligned Datasets Improve Detection of Latent Diffusion-Generated Images" (arXiv
2410.11835) and "Dual Data Alignment" (arXiv 2505.14359). They use decoders of published generators, which are not
needed here; the small ones, trained on your own photographs, and all numbers are this project's choices.

The folder is filled file by file, and the manifest is written last, so a run that was stopped can continue.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipmole.config import Config
from clipmole.data.sample import Sample
from clipmole.data.samples import CAMERA, load_window, sample_bytes
from clipmole.errors import DataError, ImageError, Stopped
from clipmole.images.dct import dct_matrix
from clipmole.images.loading import as_stored, orientation_of, source_name, turned
from clipmole.images.transforms import JPEG_BLOCK, RGB, random_crop, resize
from clipmole.models.autoencoder import SCALE, UPSAMPLERS, Autoencoder, Upsampler
from clipmole.plumbing.files import replacing_files, whole_file, write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.seeding import sample_rng, torch_seeded
from clipmole.records import Record

Mix = Literal["pixel", "dct"]
SETTINGS, MANIFEST, DECODERS = "pairs.json", "manifest.csv", "decoders"
PHOTOGRAPHS = "photographs"
COLUMNS = ("path", "label", "generator", "group", "source", "kind")
GRID = 16  # pixels between possible corners of a window: a JPEG block of colour that is stored at half the size
LEARNT_FROM, CROPS = 400, 4  # photographs for training the autoencoders, at most, and crops of each


class PairConfig(Config):
    """How pairs are made."""

    upsamplers: tuple[Upsampler, ...] = Field(UPSAMPLERS, min_length=1, description="autoencoders, in turn")
    window: int = Field(512, ge=64, le=1024, multiple_of=8, description="largest side of a window, pixels")
    steps: int = Field(600, gt=0, le=10**6, description="training steps of each autoencoder")
    batch_size: int = Field(16, gt=0, le=1024)
    crop: int = Field(64, ge=16, le=512, multiple_of=SCALE, description="side of a training crop, pixels")
    width: int = Field(32, ge=4, le=512, multiple_of=2, description="channels at half the size")
    rate: float = Field(5e-3, gt=0, description="learning rate at its highest, of Adam; one cycle")
    mix: tuple[Mix, ...] = Field((), description="ways of mixing; each pair draws one of them, or none")
    mix_share: tuple[float, float] = Field((0.5, 1.0), description="share of the twin in a mixture")
    resize_probability: float = Field(0.5, ge=0, le=1)
    resize_scale: tuple[float, float] = Field((0.6, 1.0), description="drawn once per pair")
    quality: tuple[int, int] = Field((75, 95), description="of the JPEG files, drawn once per pair")
    seed: int = Field(0, ge=0)


class Pairs(Record):
    """The result.

    Attributes:
        photographs: number of photographs with a twin.
        psnr: mean PSNR, in dB, of the twins made in this run, before mixing and encoding, by upsampler.
        failed: path -> reason, for photographs that could not be used.
    """

    photographs: int
    psnr: dict[str, float]
    failed: dict[str, str]


def train_autoencoder(
    kind: Upsampler, crops: NDArray[np.uint8], config: PairConfig, progress: ProgressReporter = SILENT
) -> Autoencoder:
    """An autoencoder of crops (n, S, S, 3), trained on |y - x| and the same of differences of neighbouring pixels."""
    rng = sample_rng(config.seed, "autoencoder", kind)
    with torch_seeded(int(rng.integers(2**31))):
        network = Autoencoder(kind, config.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=config.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=config.steps)
    for _ in progress.track(range(config.steps), f"autoencoder, {kind}", config.steps):
        chosen = rng.integers(len(crops), size=config.batch_size)
        x = tensor(crops[chosen])
        y = network(x)
        loss = (y - x).abs().mean()
        for axis in (2, 3):
            loss = loss + (y.diff(dim=axis) - x.diff(dim=axis)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress.stopping():
            raise Stopped("stopped; the finished autoencoders are kept: give the same command again to go on")
    network.eval()
    return network  # type: ignore[no-any-return]


def tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Images (n, H, W, 3) uint8 -> (n, 3, H, W) in [0, 1], channels last in memory."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def reconstruct(network: Autoencoder, rgb: RGB) -> RGB:
    """An autoencoder's reconstruction of an image (H, W, 3) with sides that are multiples of 4."""
    made = network(tensor(rgb[None]))[0].permute(1, 2, 0)
    return (made * 255).round().clamp(0, 255).byte().numpy()  # type: ignore[no-any-return]


def jpeg_own(rgb: RGB, data: bytes) -> RGB:
    """The image encoded with the tables and subsampling of the JPEG file `data`, and decoded; unchanged if it is not
    JPEG."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
                return rgb
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            tables, sampling = image.quantization, JpegImagePlugin.get_sampling(image)
            grey = image.mode == "L"
    except OSError:
        return rgb
    buffer = io.BytesIO()
    picture = Image.fromarray(rgb).convert("L") if grey else Image.fromarray(rgb)
    picture.save(buffer, "JPEG", qtables=tables, subsampling=sampling)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


def mix_pixels(photo: RGB, twin: RGB, share: float) -> RGB:
    """photo + share (twin - photo), rounded."""
    return np.rint(photo + share * (twin.astype(np.float64) - photo)).astype(np.uint8)


def mix_dct(photo: RGB, twin: RGB, mask: NDArray[np.bool_]) -> RGB:
    """The photograph with the twin's coefficients where `mask` (8, 8) says so, in the DCT of each block of 8 x 8."""
    height, width = photo.shape[:2]
    difference = twin.astype(np.float64) - photo
    blocks = difference.reshape(height // JPEG_BLOCK, JPEG_BLOCK, width // JPEG_BLOCK, JPEG_BLOCK, 3)
    d = dct_matrix(JPEG_BLOCK)
    coefficients = np.einsum("ui,aibjc,vj->aubvc", d, blocks, d, optimize=True) * mask[:, None, :, None]
    mixed = photo + np.einsum("ui,aubvc,vj->aibjc", d, coefficients, d, optimize=True).reshape(photo.shape)
    found: RGB = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return found


def mixed(photo: RGB, twin: RGB, config: PairConfig, rng: np.random.Generator) -> RGB:
    """The twin, or a mixture of it and the photograph, as drawn."""
    kind = int(rng.integers(len(config.mix) + 1))
    share = float(rng.uniform(*config.mix_share))
    draws = rng.random((JPEG_BLOCK, JPEG_BLOCK))
    if kind == len(config.mix):
        return twin
    if config.mix[kind] == "pixel":
        return mix_pixels(photo, twin, share)
    return mix_dct(photo, twin, draws <= max(share, float(draws.min())))


def cut_window(rgb: RGB, config: PairConfig, rng: np.random.Generator) -> RGB:
    """A window of at most `config.window` pixels a side, its corner on `GRID`, its sides multiples of 8.

    Raises `DataError` if the image is too small.
    """
    height, width = (side - side % JPEG_BLOCK for side in rgb.shape[:2])
    if min(height, width) < config.crop:
        raise DataError(f"has {rgb.shape[1]} x {rgb.shape[0]} pixels, too few: {config.crop} a side are needed")
    top, left = (GRID * int(rng.integers(max(0, side - config.window) // GRID + 1)) for side in (height, width))
    found: RGB = rgb[top : min(height, top + config.window), left : min(width, left + config.window)]
    return found


def make_pair(
    rgb: RGB, data: bytes, network: Autoencoder, config: PairConfig, rng: np.random.Generator
) -> tuple[bytes, bytes, float]:
    """JPEG files of a photograph's window and of its twin, and the PSNR of the autoencoder's reconstruction, dB.

    Args:
        rgb: the photograph, upright.
        data: its file.
    """
    orientation = orientation_of(data)
    photo = cut_window(as_stored(rgb, orientation), config, rng)
    twin = reconstruct(network, photo)
    error = float(np.square(twin.astype(np.float64) - photo).mean())
    twin = jpeg_own(mixed(photo, twin, config, rng), data)
    resized, scale = rng.random() < config.resize_probability, float(rng.uniform(*config.resize_scale))
    quality = int(rng.integers(config.quality[0], config.quality[1] + 1))
    files = []
    for pixels in (np.ascontiguousarray(turned(stored, orientation)) for stored in (photo, twin)):
        buffer = io.BytesIO()
        Image.fromarray(resize(pixels, scale) if resized else pixels).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files[0], files[1], 10 * float(np.log10(255**2 / max(error, 1e-2)))


def make_pairs(
    samples: Sequence[Sample], out: Path, config: PairConfig | None = None, *, progress: ProgressReporter = SILENT
) -> Pairs:
    """Train the autoencoders and write the pairs and their manifest; a run that was stopped continues.

    Args:
        samples: photographs; identical ones are used once. Autoencoders learn from those of the split train, or
            from all if no splits are named.
        out: a folder that does not exist, is empty, or was begun with the same photographs and settings.

    Raises `DataError` if there are no photographs, or `out` holds something else or cannot be written.
    """
    config = config or PairConfig()
    named = {sample.split for sample in samples} - {""}
    photographs: dict[str, Sample] = {}
    given = [sample for sample in samples if sample.label == 0]
    for sample in progress.track(given, "reading", len(given)):
        photographs.setdefault(hashlib.sha256(sample_bytes(sample)).hexdigest(), sample)
    if not photographs:
        raise DataError("no photographs: give a folder of them, or a manifest with label 0")
    begin(out, config, photographs)
    try:
        learnt = {sha: s for sha, s in photographs.items() if not named or s.split == "train"} or photographs
        networks = autoencoders(learnt, out, config, progress)
        return write_pairs(photographs, networks, out, config, progress)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{out}: cannot be written: {reason}; free some space or name another folder") from error


def begin(out: Path, config: PairConfig, photographs: dict[str, Sample]) -> None:
    """Record in `out` what will be made there. Raises `DataError` if it holds anything else."""
    lines = [f"{sha} {sample.split}" for sha, sample in sorted(photographs.items())]
    what = {
        "settings": config.model_dump(mode="json"),
        "photographs": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }
    if (out / SETTINGS).is_file():
        if read_json(out / SETTINGS, DataError) != what:
            raise DataError(f"{out}: was begun with other photographs or settings; name another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and was not made by clipmole data pair; name another --out")
    try:
        write_texts(out, {SETTINGS: Pairing.model_validate(what).model_dump_json(indent=1) + "\n"})
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}; name another --out") from error


class Pairing(Record):
    """The content of `pairs.json`: the settings, and a digest of the photographs' contents and splits."""

    settings: PairConfig
    photographs: str


def autoencoders(
    photographs: dict[str, Sample], out: Path, config: PairConfig, progress: ProgressReporter
) -> dict[Upsampler, Autoencoder]:
    """The trained autoencoders: those kept in `out`, and new ones, which are then kept there."""
    kept = {kind: read_autoencoder(out / DECODERS / f"{kind}.safetensors", kind, config) for kind in config.upsamplers}
    missing = [kind for kind, network in kept.items() if network is None]
    crops = list(training_crops(photographs, config, progress)) if missing else []
    for kind in missing:
        network = train_autoencoder(kind, np.concatenate(crops), config, progress)
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        with replacing_files(out / DECODERS) as folder:
            save_file(state, folder / f"{kind}.safetensors")
        kept[kind] = network
    return {kind: network for kind, network in kept.items() if network is not None}


def read_autoencoder(path: Path, kind: Upsampler, config: PairConfig) -> Autoencoder | None:
    """A kept autoencoder; None if it is not there or does not fit."""
    network = Autoencoder(kind, config.width)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        return None
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def training_crops(
    photographs: dict[str, Sample], config: PairConfig, progress: ProgressReporter
) -> Iterator[NDArray[np.uint8]]:
    """Crops (`CROPS`, S, S, 3) of at most `LEARNT_FROM` photographs, those with the smallest digests.

    Raises `DataError` if none can be read.
    """
    found = False
    chosen = sorted(photographs)[:LEARNT_FROM]
    for sha in progress.track(chosen, "looking at photographs", len(chosen)):
        rng = sample_rng(config.seed, "crops", sha)
        try:
            rgb = cut_window(load_window(photographs[sha]), config, rng)
        except (ImageError, DataError):
            continue  # it is named when its twin should be made
        found = True
        yield np.stack([random_crop(rgb, config.crop, rng) for _ in range(CROPS)])
    if not found:
        raise DataError(f"none of the {len(chosen)} photographs can be used; clipmole data check says why")


def write_pairs(
    photographs: dict[str, Sample],
    networks: dict[Upsampler, Autoencoder],
    out: Path,
    config: PairConfig,
    progress: ProgressReporter,
) -> Pairs:
    """Write the missing files of each pair, and the manifest."""
    failed: dict[str, str] = {}
    quality: dict[str, list[float]] = {kind: [] for kind in networks}
    rows: list[dict[str, str]] = []
    for number, (sha, sample) in enumerate(
        progress.track(sorted(photographs.items()), "making pairs", len(photographs))
    ):
        kind = list(networks)[number % len(networks)]
        paths = (f"{PHOTOGRAPHS}/{sha[:16]}.jpg", f"{kind}/{sha[:16]}.jpg")
        if not all((out / path).is_file() for path in paths):
            try:
                rgb, data = load_window(sample), sample_bytes(sample)
                *files, psnr = make_pair(rgb, data, networks[kind], config, sample_rng(config.seed, "pair", sha))
            except (ImageError, DataError) as error:
                failed[source_name(sample.path)] = str(error)
                continue
            for path, content in zip(paths, files, strict=True):
                with whole_file(out / path) as file:
                    file.write(content)
            quality[kind].append(psnr)
        for label, path in enumerate(paths):
            generator = f"twin-{kind}" if label else CAMERA
            row = {"path": path, "label": str(label), "generator": generator}
            row |= {"group": sample.group or f"pair-{sha[:16]}", "source": sample.source, "kind": sample.kind}
            rows.append(row | {"split": sample.split})
        if progress.stopping():
            raise Stopped("stopped; the finished pairs are kept: give the same command again to go on")
    text = io.StringIO()
    columns = [*COLUMNS, "split"] if any(row["split"] for row in rows) else list(COLUMNS)
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_texts(out, {MANIFEST: text.getvalue()})
    psnr_of = {kind: float(np.mean(values)) for kind, values in quality.items() if values}
    return Pairs(photographs=len(rows) // 2, psnr=psnr_of, failed=failed)
