"""UnivFD's published linear head on CLIP ViT-L/14: the case without experts.

In: the published file. Out: a network, or an adapter directory like any other. It knows nothing of images.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from clipmole.config import MoLEConfig, PreprocessConfig
from clipmole.errors import CheckpointError
from clipmole.models.adapter import check_target, save_adapter
from clipmole.models.backbone import Backbone, load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.json_toml import NotReadable, read_regular_file

UNIVFD_HEAD_SHA256 = "477100745713bcc957beb2b40859536859b6483fd6301b3b9293151b194c7847"


def univfd_network(head: str | Path, backbone: str | Path = "vit-l-14") -> tuple[MoLENetwork, Backbone]:
    """UnivFD's published linear head (arXiv 2302.10174) on CLIP ViT-L/14: no experts, no shared LoRA.

    Args:
        head: path of `fc_weights.pth`, in `pretrained_weights` of WisconsinAIVision/UniversalFakeDetect (MIT licence).
        backbone: the name of CLIP ViT-L/14, or a directory that holds it.

    Returns:
        The network, and its backbone.

    Raises:
        CheckpointError: the file is not that head, by its sha256, or does not fit the backbone.
        WeightsError: the backbone cannot be loaded.
    """
    path = Path(head)
    try:
        data = read_regular_file(path)
    except NotReadable as reason:
        raise CheckpointError(f"{path}: {reason}") from reason
    if hashlib.sha256(data).hexdigest() != UNIVFD_HEAD_SHA256:
        raise CheckpointError(f"{path}: is not UnivFD's published head (sha256 {UNIVFD_HEAD_SHA256[:12]}...)")
    state = torch.load(path, map_location="cpu", weights_only=True)
    loaded = load_backbone(backbone)
    channels = loaded.tower.config.feature_dim
    if state["weight"].shape != (1, channels):
        raise CheckpointError(
            f"{loaded.id}: its feature has {channels} channels, and UnivFD's head reads "
            f"{state['weight'].shape[1]}: it belongs to CLIP ViT-L/14"
        )
    head_only = MoLEConfig(shared_rank=0, expert_ranks=())
    weights = {f"head.{name}": tensor for name, tensor in state.items()}
    return MoLENetwork.with_weights(loaded.tower, head_only, lambda _names: weights), loaded


def import_univfd(head: str | Path, directory: str | Path, backbone: str | Path = "vit-l-14") -> None:
    """Turn UnivFD's published head into an adapter directory, with a centre crop and without a calibration.

    Args:
        head, backbone: as in `univfd_network`.
        directory: the adapter directory to write.

    Raises as `univfd_network` and `save_adapter` do.
    """
    check_target(directory)
    network, loaded = univfd_network(head, backbone)
    card = "# UnivFD's published linear head on CLIP ViT-L/14\n\nNot calibrated: it gives logits, no verdicts."
    save_adapter(directory, network, loaded, PreprocessConfig(mode="center_crop"), card=card)
