"""A tower that fits in a tweet, and images made on the spot: what the tests run on."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipmole.calibration import Calibration
from clipmole.config import MoLEConfig, PreprocessConfig, TowerConfig
from clipmole.models.adapter import save_adapter
from clipmole.models.backbone import Backbone, save_tower, tower_sha256
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.records import Thresholds

TINY = TowerConfig(image_size=32, patch_size=16, width=24, depth=8, heads=2, mlp_width=48)
CALIBRATION = Calibration(
    slope=2.0,
    intercept=0.1,
    thresholds=Thresholds(real=0.3, generated=0.7),
    max_false_alarm=0.05,
    max_miss=0.1,
    n_real=50,
    n_generated=50,
    variants=("as stored",),
)


def tiny_backbone(seed: int = 0, **changes: object) -> Backbone:
    """A random tiny tower, the same for the same seed."""
    torch.manual_seed(seed)
    tower = ViT(TINY.model_copy(update=changes)).requires_grad_(False).eval()
    torch.nn.init.normal_(tower.position_embedding, std=0.5)
    torch.nn.init.normal_(tower.class_token, std=0.5)
    return Backbone(tower=tower, id="tiny", revision=None, sha256=tower_sha256(tower))


def tiny_network(backbone: Backbone | None = None, config: MoLEConfig | None = None, seed: int = 1) -> MoLENetwork:
    """A tiny detector network whose adapter is not zero, as after training."""
    network = MoLENetwork((backbone or tiny_backbone()).tower, config or MoLEConfig())
    torch.manual_seed(seed)
    for layer in network.mole_layers:
        torch.nn.init.normal_(layer.lora_B)
    torch.nn.init.normal_(network.head.weight)
    return network.eval()


PREPROCESS = PreprocessConfig(crop_size=32, max_tiles=4)


def write_adapter(folder: Path, **changes: object) -> tuple[Path, Path]:
    """The directories of an adapter and of its backbone, whose tower has the changes."""
    backbone = tiny_backbone(**changes)
    save_tower(backbone.tower, folder / "tiny", torch.float32)
    save_adapter(folder / "adapter", tiny_network(backbone), tiny_backbone(**changes), PREPROCESS, CALIBRATION)
    return folder / "adapter", folder / "tiny"


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth random RGB picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def write_corpus(folder: Path, per_class: dict[str, int]) -> Path:
    """A manifest with `per_class[split]` images of each class that a network can tell apart.

    The "generated" images carry a one-pixel checkerboard, the "photographs" do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,generator,split"]
    checks = (np.indices((64, 64)).sum(0) % 2 * 48)[..., None]
    for split, count in per_class.items():
        for label in (0, 1):
            for i in range(count):
                name = f"{split}-{label}-{i}.png"
                pixels = np.asarray(picture(zlib.crc32(name.encode()), 64, 64)).astype(int) * 0.8
                Image.fromarray((pixels + label * checks).astype(np.uint8)).save(folder / name)
                lines.append(f"{name},{label},{'checks' if label else 'camera'},{split}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
