"""Where in an image a detector's logit comes from: tiles, patches, experts.

In: a detector and an image source. Out: an `Evidence` record that turns into JSON. It knows nothing of how it is
drawn, and nothing of metadata (`provenance`).

What a map does not prove: it describes the detector, not the image. A bright patch is one that this network's
logit depends on; it need not be generated, and a generated patch need not be bright. Measured with
benchmarks/evidence_map.py.
"""

from __future__ import annotations

import torch
from pydantic import Field

from clipmole.errors import ConfigError
from clipmole.images.crops import Box, Crops, cut_crops
from clipmole.images.loading import ImageSource, load_image, source_name
from clipmole.inference.attribution import DEFAULT_METHOD, attribute, gates_of
from clipmole.inference.detector import Detector
from clipmole.models.network import MoLENetwork
from clipmole.records import Detection, Record

CAUTION = (
    "A map shows what this detector's score leans on, not which parts of the image are generated. A bright patch "
    "can be real and a dark one generated; do not quote it as proof of a local edit."
)


class BlockRouting(Record):
    """What the router of one adapted block did with the patches of a tile.

    Attributes:
        block: index of the block in the tower, from 0.
        mean_gates: mean gate of each expert over the patches: those of the router, which sum to 1 under a softmax of
            all experts, then those of extensions, each between 0 and 1.
        experts: for each patch (rows, columns), the index of the expert with the largest gate.
    """

    block: int = Field(ge=0)
    mean_gates: tuple[float, ...]
    experts: tuple[tuple[int, ...], ...]


class TileEvidence(Record):
    """One crop of the image.

    Attributes:
        box: (left, top, right, bottom) within the image, pixels.
        logit: of this crop alone, positive towards AI-generated.
        grid_box: (left, top, right, bottom) of the grid of patches, pixels of the image; an image smaller than a crop
            was mirrored, and its grid reaches beyond its borders.
        attribution: logit units by patch (rows, columns), positive towards AI-generated; None unless asked for.
        routing: one entry per adapted block with experts; () unless asked for, or if the detector has none.
    """

    box: Box
    logit: float
    grid_box: Box | None = None
    attribution: tuple[tuple[float, ...], ...] | None = None
    routing: tuple[BlockRouting, ...] = ()


class Evidence(Record):
    """Where the logit of an image comes from.

    Attributes:
        source, detector, width, height, logit: as in `Detection`.
        tiles: the crops. The image's logit is the mean of theirs, or a weighted mean of that and the logit of the view
            of the whole.
        patch_size: side of a patch, pixels; None if the detector runs on a graph without its network.
        expert_ranks: rank of each expert, in the order of the gates, extensions last; () if it has none, or if the
            detector runs on a graph.
        method: how `attribution` was computed; None unless asked for.
        caution: what a map does not prove.
    """

    source: str
    detector: str
    width: int
    height: int
    logit: float
    tiles: tuple[TileEvidence, ...]
    patch_size: int | None
    expert_ranks: tuple[int, ...] = ()
    method: str | None = None
    caution: str = CAUTION


def explain(detector: Detector, source: ImageSource, tokens: bool = False) -> Evidence:
    """The logit of an image by tile; with `tokens` also by patch, and the expert with the largest gate at each patch.

    The logits are the detector's own; attributions are computed in float32 whatever its precision. It works on a
    detector with or without a calibration or adapted blocks. Not to be called while another thread uses the
    detector.

    Args:
        detector: with its network in PyTorch if `tokens` are asked for.
        source: a path, the bytes of a file, a PIL image, or an array (H, W, 3) uint8.
        tokens: also attribute the logit to the patches of each tile; as slow as about three forward passes.

    Returns:
        The logit of each tile and its box in pixels; with `tokens` the share of each patch, in units of the logit.

    Raises:
        ImageError: the image cannot be scored.
        ConfigError: `tokens` are asked of a detector that does not run on torch.

    Examples:
        >>> from clipmole import Detector, explain
        >>> evidence = explain(Detector.from_pretrained(), "photo.png", tokens=True)
        >>> tile = evidence.tiles[0]
        >>> rows, columns = len(tile.attribution), len(tile.attribution[0])
        >>> (rows * evidence.patch_size, columns * evidence.patch_size)
        (224, 224)
    """
    if tokens and network_of(detector) is None:
        raise ConfigError(
            f"{detector.name}: evidence by patch needs gradients, which its runtime lacks; load it with runtime='torch'"
        )
    image = load_image(source)
    crops = cut_crops(image, detector.preprocess) if tokens else None
    detection = detector.detect(image, tiles=True).model_copy(update={"source": source_name(source)})
    return explain_crops(detector, detection, crops)


def explain_crops(detector: Detector, detection: Detection, crops: Crops | None = None) -> Evidence:
    """The evidence of `explain` for an image that has already been scored.

    Args:
        detection: with the logit and the box of each crop.
        crops: the crops themselves, for evidence by patch; None: only by tile.
    """
    assert detection.tile_logits is not None
    assert detection.tile_boxes is not None
    network = network_of(detector)
    tiles = [
        TileEvidence(box=box, logit=logit)
        for box, logit in zip(detection.tile_boxes, detection.tile_logits, strict=True)
    ]
    if crops is not None:
        network = detector.network
        batch = torch.tensor(crops.pixels).to(detector.device)
        tiles = [
            _with_tokens(tile, window, network, batch[i : i + 1])
            for i, (tile, window) in enumerate(zip(tiles, crops.windows, strict=True))
        ]
    return Evidence(
        source=detection.source,
        detector=detection.detector,
        width=detection.width,
        height=detection.height,
        logit=detection.logit,
        tiles=tuple(tiles),
        patch_size=network.tower.config.patch_size if network else None,
        expert_ranks=network.config.gated_ranks if network else (),
        method=DEFAULT_METHOD if crops is not None else None,
    )


def network_of(detector: Detector) -> MoLENetwork | None:
    """The detector's network in PyTorch; None if it runs only as a graph, which has no gradients."""
    try:
        return detector.network
    except ConfigError:
        return None


def _with_tokens(tile: TileEvidence, window: Box, network: MoLENetwork, crop: torch.Tensor) -> TileEvidence:
    """`tile` with its attributions and routing; `crop` (1, 3, S, S) shows `window` of the image."""
    shares = attribute(network, crop)[0]
    side = network.tower.config.patch_size
    rows, columns = shares.shape
    routing = tuple(
        BlockRouting(
            block=block,
            mean_gates=tuple(gates[0].flatten(0, 1).mean(0).tolist()),
            experts=tuple(tuple(row) for row in gates[0].argmax(-1).tolist()),
        )
        for block, gates in gates_of(network, crop).items()
    )
    x, y, right, _ = window
    scale = (right - x) / crop.shape[-1]
    return tile.model_copy(
        update={
            "grid_box": (x, y, x + round(columns * side * scale), y + round(rows * side * scale)),
            "attribution": tuple(tuple(row) for row in shares.tolist()),
            "routing": routing,
        }
    )
