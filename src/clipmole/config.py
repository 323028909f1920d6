"""Settings of a tower, an adapter, the preprocessing, the augmentation and a training run.

In: a TOML file (the user's, or one that comes with the package, by its name) or a dict; an unknown key or a value
out of range raises a `ConfigError` that names it. From keyword arguments it raises pydantic's `ValidationError`.
Out: frozen pydantic models. This module knows nothing of torch, images or the content of other files.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from clipmole.errors import ConfigError
from clipmole.plumbing.json_toml import read_toml

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/CLIP, clip.py: _transform
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Far above what any network has; a damaged or hostile file may ask for more and exhaust the memory.
MOST_CHANNELS, MOST_PIXELS, MOST_STEPS = 2**16, 2**14, 10**6
MOST_RATE = 1e6  # a learning rate above all that can be of use, and below those that float32 cannot hold


def first_problem(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first thing that pydantic found wrong, as one line that names the key and the value.

    Args:
        model: what was validated; an unknown key is then named with the one that was probably meant.
    """
    first = error.errors(include_url=False)[0]
    match first["type"]:
        case "missing":
            reason = "is missing"
        case "extra_forbidden":
            near = get_close_matches(str(first["loc"][-1]), _keys_beside(model, first["loc"]), n=1, cutoff=0.8)
            meant = f"; is {near[0]} meant?" if near else ""
            reason = f"unknown key (given: {first['input']!r:.100}){meant}"
        case "value_error":  # from a validator of this package, whose message names the value
            reason = str(first["ctx"]["error"])
        case _:
            reason = f"{first['msg']} (given: {first['input']!r:.100})"
    return ": ".join(filter(None, [".".join(str(part) for part in first["loc"]), reason]))


def _keys_beside(model: Any, place: Sequence[Any]) -> list[str]:
    """The keys that `model` has where its value at `place` was found; [] if that is not one model's."""
    for part in place[:-1]:
        if isinstance(part, str):  # not a place in a list
            field = getattr(model, "model_fields", {}).get(part)
            model = next(iter(get_args(field.annotation)), field.annotation) if field else None
    return list(getattr(model, "model_fields", ()))


def check_name(setting: str, given: str | None, known: Sequence[str]) -> None:
    """Raise a `ConfigError` that lists the known names, unless `given` is one of them, or None for the default."""
    if given is not None and given not in known:
        raise ConfigError(f"{setting}={given!r}: is unknown; give one of {', '.join(known)}")


class Config(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], source: str) -> Self:
        """Validate `values`; a `ConfigError` of one line names `source`, the key and the value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error, cls)}") from error

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a TOML file. Raises `ConfigError` if it is absent, not TOML, or does not validate."""
        return cls.parse(read_toml(path), str(path))


class TowerConfig(Config):
    """Geometry of one Vision Transformer tower, and the normalisation its weights were trained with."""

    image_size: int = Field(
        224, gt=0, le=MOST_PIXELS, description="side of the square the positions were trained at, pixels"
    )
    patch_size: int = Field(gt=0, le=MOST_PIXELS, description="side of a patch, pixels")
    stem: tuple[int, ...] = Field(
        (), description="channels of 3x3 convolutions of stride 2 before the patches are embedded; (): none"
    )
    width: int = Field(gt=0, le=MOST_CHANNELS, description="channels of a token, d")
    depth: int = Field(gt=0, le=1000, description="number of blocks")
    heads: int = Field(gt=0, le=MOST_CHANNELS, description="attention heads; divides width")
    mlp_width: int = Field(gt=0, le=16 * MOST_CHANNELS, description="hidden channels of a block's MLP")
    activation: Literal["quick_gelu", "gelu"] = "gelu"
    layer_norm_eps: float = Field(1e-5, gt=0)
    patch_bias: bool = True
    pre_norm: bool = Field(False, description="a LayerNorm on the embedded tokens, as CLIP has")
    layer_scale: bool = Field(False, description="a learnt scale on each residual branch, as DINOv2 has")
    projection_dim: int | None = Field(
        None, gt=0, le=MOST_CHANNELS, description="CLIP's image embedding; None: no projection"
    )
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="RGB, of values in [0, 1]")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="RGB, of values in [0, 1]")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        if any(not 1 <= channels <= MOST_CHANNELS for channels in self.stem) or self.patch_size % 2 ** len(self.stem):
            raise ValueError(f"stem={self.stem}: each convolution halves patch_size={self.patch_size}, a whole number")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: standard deviations are positive")
        return self

    @property
    def feature_dim(self) -> int:
        """Channels of the feature that the head reads."""
        return self.projection_dim or self.width

    @property
    def grid(self) -> int:
        """Patches along one side at `image_size`."""
        return self.image_size // self.patch_size


def clip_tower(patch_size: int, width: int, depth: int, heads: int, projection_dim: int) -> TowerConfig:
    """CLIP's image tower (Radford et al. 2021, arXiv 2103.00020): pre-LN, QuickGELU, projected class token."""
    return TowerConfig(
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        activation="quick_gelu",
        patch_bias=False,
        pre_norm=True,
        projection_dim=projection_dim,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


CLIP_TOWERS: dict[str, TowerConfig] = {
    "vit-b-32": clip_tower(32, 768, 12, 12, 512),
    "vit-b-16": clip_tower(16, 768, 12, 12, 512),
    "vit-l-14": clip_tower(14, 1024, 24, 16, 768),
}


class Families(Config):
    """The families of generators that a detector can name, and how often it named the right one.

    Attributes:
        names: names of the k families.
        confusion: (k + 1, k + 1) counts of generated validation images, shown equalised. A row is for the true family,
            the last row for all other generators. A column is for the family that was named, the last column for none.
    """

    names: tuple[str, ...] = Field(min_length=2)
    confusion: tuple[tuple[NonNegativeInt, ...], ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        k = len(self.names)
        if {len(row) for row in (self.confusion, *self.confusion)} != {k + 1}:
            raise ValueError(f"confusion: must have {k + 1} rows and columns, for {k} families and the rest")
        return self

    def answers(self, family: int) -> tuple[int, int]:
        """(right, answers): how often this family (0..k-1) was named rightly, and how often it was named."""
        return self.confusion[family][family], sum(row[family] for row in self.confusion)


class MoLEConfig(Config):
    """The adapter: without a shared LoRA and experts a linear probe; with the LoRA alone, plain LoRA; with both, MoLE.

    The paper (arXiv 2404.04883) does not give the ranks, the scale, the balance loss and (for B/16 and L/14) the
    adapted blocks; the defaults are this project's choice. With them L/14 trains 240,385 parameters, 0.08 % of the
    tower's, as in the paper.
    """

    blocks: tuple[int, ...] | int | None = Field(
        None,
        description="indices of the adapted blocks; a number: that many of the last blocks; None: the last quarter",
    )
    shared_rank: int = Field(4, ge=0, le=MOST_CHANNELS, description="rank of the shared LoRA; 0: none")
    expert_ranks: tuple[int, ...] = Field((2, 4, 8), description="ranks of the separate LoRAs; (): none")
    alpha: float | None = Field(None, gt=0, description="LoRA scaling is alpha / rank; None: alpha = rank")
    router: Literal["softmax", "image", "local-global"] = Field(
        "softmax",
        description="gates of the experts. softmax: of each token; image: of the class token, the same for all tokens; "
        "local-global: a sigmoid of each token times a sigmoid of the expert's mean output",
    )
    top_k: int | None = Field(None, gt=0, description="experts kept, by the largest gates; None: all")
    renormalize: bool = Field(True, description="the gates that top_k leaves sum to 1 again")
    router_noise: float = Field(
        0.0, ge=0, description="standard deviation of noise on the router's logits in training; 0: none"
    )
    balance_weight: float = Field(0.01, ge=0, description="weight of the balance loss")
    head_blocks: tuple[int, ...] | Literal["all"] = Field(
        (),
        description="blocks whose class tokens the head reads as well, layer-normalised (as RINE, arXiv 2402.19091); "
        "all: every one but the last, which is always read",
    )
    drawn: bool = Field(
        False,
        description="a second output of the head, above 0 for images that are drawn, painted or rendered; the detector "
        "then gives no verdict; it is fitted to a trained adapter",
    )
    families: Families | None = Field(
        None, description="further outputs of the head, one for each family of generators; written by training"
    )
    companion: Literal["aide", "ffit"] | None = Field(
        None,
        description="a second network that reads the crop. aide: the smoothest and busiest patches of the crop; ffit: "
        "the magnitude of its Fourier transform",
    )
    companion_weight: float = Field(
        1.0, ge=0, description="weight of the companion's own loss, that of ffit's masked autoencoder"
    )
    expert_groups: tuple[int, ...] = Field(
        (), description="numbers of experts that share a softmax, in a merged adapter; (): all share one"
    )
    extension_ranks: tuple[int, ...] = Field(
        (), description="ranks of the separate LoRAs that were added later, each with a gate of its own"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("expert_ranks", "extension_ranks"):
            ranks = getattr(self, name)
            if any(rank < 1 for rank in ranks):
                raise ValueError(f"{name}={ranks}: every rank is at least 1")
            if len(ranks) > 1000 or sum(ranks) > MOST_CHANNELS:
                raise ValueError(f"{name}: more than 1000, or together more than {MOST_CHANNELS}")
        if self.companion_weight != 1 and self.companion != "ffit":
            raise ValueError(f"companion_weight={self.companion_weight:g}: only companion = 'ffit' has one")
        groups, experts = self.expert_groups or (len(self.expert_ranks),), len(self.expert_ranks)
        if any(size < 1 for size in self.expert_groups) or sum(groups) != experts:
            raise ValueError(f"expert_groups={self.expert_groups}: must divide the {experts} experts")
        if self.top_k is not None and self.top_k > min(groups):
            raise ValueError(f"top_k={self.top_k} is more than the {min(groups)} experts")
        if not self.renormalize and self.top_k is None:
            raise ValueError("renormalize=False: without top_k nothing is left out; set top_k")
        softmax_only = {"top_k": self.top_k, "router_noise": self.router_noise, "expert_groups": self.expert_groups}
        if self.router == "local-global" and (given := [name for name, value in softmax_only.items() if value]):
            raise ValueError(f"router='local-global' has no softmax, to which {given[0]} applies: leave it out")
        return self

    @property
    def adapts(self) -> bool:
        """Whether any block is adapted; otherwise only the head is trained."""
        return self.shared_rank > 0 or bool(self.gated_ranks)

    @property
    def gated_ranks(self) -> tuple[int, ...]:
        """Ranks of all separate LoRAs, in the order of their gates: the router's experts, then those added later."""
        return self.expert_ranks + self.extension_ranks

    def read_blocks(self, depth: int) -> tuple[int, ...]:
        """Indices of the head blocks in a tower of `depth` blocks, ascending.

        Raises `ConfigError` unless they are distinct blocks before the last one.
        """
        if self.head_blocks == "all":
            return tuple(range(depth - 1))
        if list(self.head_blocks) != sorted(set(self.head_blocks) & set(range(depth - 1))):
            raise ConfigError(
                f"mole.head_blocks: {self.head_blocks} are not blocks of 0..{depth - 2} in ascending order; the last "
                "block is always read"
            )
        return self.head_blocks

    def block_indices(self, depth: int) -> tuple[int, ...]:
        """Indices of the adapted blocks in a tower of `depth` blocks, ascending; () if no block is adapted.

        Raises `ConfigError` if the tower does not have these blocks.
        """
        if not self.adapts:
            return ()
        if depth == 0:
            raise ConfigError(
                "mole: concatenated backbones have no blocks to adapt: set shared_rank = 0 and expert_ranks = []"
            )
        if self.blocks is None:
            return tuple(range(depth - max(1, depth // 4), depth))
        if isinstance(self.blocks, int):
            if not 1 <= self.blocks <= depth:
                raise ConfigError(f"mole.blocks: the last {self.blocks} of {depth} blocks cannot be adapted")
            return tuple(range(depth - self.blocks, depth))
        indices = tuple(sorted(set(self.blocks)))
        if len(indices) != len(self.blocks) or not indices or indices[0] < 0 or indices[-1] >= depth:
            raise ConfigError(f"mole.blocks: {self.blocks} are not distinct blocks of 0..{depth - 1}")
        return indices


class PreprocessConfig(Config):
    """From an RGB image to crops at native resolution and, if it has a weight, a view of the whole.

    The crops are never resized: resizing destroys the traces that a detector looks for in them. The view of the whole,
    the middle square of the image at small size, shows what no crop can: composition, light, things that do not fit
    together.
    """

    mode: Literal["center_crop", "tiles"] = "tiles"
    crop_size: int = Field(224, gt=0, le=MOST_PIXELS, description="side of a crop, pixels")
    max_tiles: int = Field(9, gt=0, le=10_000, description="crops of one image in mode 'tiles', at most")
    whole_weight: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="weight of the view of the whole in an image's logit; the mean over the crops has the rest",
    )


class AugmentConfig(Config):
    """Random processing of a training window; no draw depends on the label.

    A window is an image without the rows that hold a visible mark. Blur, JPEG, crop and flip are CNNSpot's (arXiv
    1912.11035) with UnivFD's (arXiv 2302.10174) ranges. At the end windows of both classes are re-encoded with
    qualities from the range `equalise_quality`, so that a difference in JPEG quality between the classes cannot give
    the label away.
    """

    blur_probability: float = Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.0, 3.0)
    jpeg_probability: float = Field(0.5, ge=0, le=1)
    jpeg_quality: tuple[int, int] = (30, 100)
    resize_probability: float = Field(0.0, ge=0, le=1)
    resize_scale: tuple[float, float] = (0.5, 1.5)
    noise_probability: float = Field(0.0, ge=0, le=1)
    noise_sigma: tuple[float, float] = Field((0.0, 5.0), description="standard deviation, of values 0..255")
    grid_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of crops that start on the 8x8 grid of a JPEG file, unless the view was resized",
    )
    chain: tuple[float, ...] = Field(
        (),
        description="probability of 0, 1, 2, ... steps of what happens to images on the web: JPEG, WebP, sharpening, "
        "blur, noise, tone; (): none",
    )
    flip_probability: float = Field(0.5, ge=0, le=1)
    equalise_quality: tuple[int, int] | None = Field((65, 90), description="last step; None: off")
    equalise_probability: float = Field(0.9, ge=0, le=1, description="share of windows that get this last step")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("blur_sigma", "jpeg_quality", "resize_scale", "noise_sigma", "equalise_quality"):
            pair = getattr(self, name)
            if pair is not None and not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"{name}={pair}: not an ascending range")
        for name in ("jpeg_quality", "equalise_quality"):
            pair = getattr(self, name)
            if pair is not None and not 1 <= pair[0] <= pair[1] <= 100:
                raise ValueError(f"{name}={pair}: JPEG qualities run from 1 to 100")
        if self.resize_scale[0] <= 0:
            raise ValueError(f"resize_scale={self.resize_scale}: scales are positive")
        if self.chain and (min(self.chain) < 0 or abs(sum(self.chain) - 1) > 1e-6):
            raise ValueError(f"chain={self.chain}: probabilities, which sum to 1")
        return self


# Settings of a run that say where its images and files are, not how they are used.
LOCATION_SETTINGS = ("data", "real", "fake", "unpack_to", "unpack_gib", "cache_gib")
# Settings that were added later: their defaults do not change the digest of a run, so older runs are recognised.
LATER = {
    "min_steps_per_epoch",
    "router",
    "renormalize",
    "router_noise",
    "expert_groups",
    "extension_ranks",
    "head_blocks",
    "whole_weight",
    "extension_rank",
    "kept_tokens",
    "replay_weight",
    "hypernetwork",
    "chain",
    "whole_share",
    "head_start",
    "head_learning_rate",
    "label_smoothing",
    "patch_dropout",
    "cached_blocks",
    "cache_runtime",
    "views_from",
    "companion",
    "companion_weight",
    "families",
}


class TrainConfig(Config):
    """One training run, from labelled images to an adapter directory."""

    backbone: str = Field(
        description="a preset, a hub id or a directory; several: their features side by side, for a head alone"
    )
    data: str | None = Field(None, description="a manifest, a folder, shards, hf:owner/name: see data.read_data")
    real: tuple[str, ...] = Field((), description="folders of photographs; with fake, instead of data")
    fake: tuple[str, ...] = Field((), description="folders of generated images")
    per_class: int | None = Field(
        None, gt=1, description="training images of each class of the layout, half of them photographs; None: all"
    )
    skip_unreadable: bool = Field(False, description="leave out images that cannot be read, and record which")
    unpack_to: str | None = Field(None, description="folder for images that cannot be read in place; None: a cache")
    unpack_gib: float = Field(20.0, gt=0, description="most GiB to unpack")
    mole: MoLEConfig = MoLEConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    full_finetune: bool = Field(False, description="train the whole tower as well")
    hypernetwork: bool = Field(
        False,
        description="a hypernetwork writes the shared LoRA in training, a fifth of it for each group of noise filters "
        "(HyperDet)",
    )
    cached_views: int | None = Field(
        None,
        gt=0,
        le=10_000,
        description="views of an image whose tokens are kept on disk; None: a new view in each epoch",
    )
    cached_blocks: int | None = Field(
        None, ge=0, description="blocks whose output is kept; None: all before the first adapted one"
    )
    cache_runtime: Literal["torch", "openvino", "auto"] = Field(
        "torch",
        description="what computes the tokens that are kept; auto: OpenVINO, which is faster, on a CPU where it is "
        "installed, else PyTorch",
    )
    cache_gib: float = Field(20.0, gt=0, description="largest size of the folder of the prefix cache, GiB")
    extension_rank: int = Field(
        4,
        ge=0,
        le=MOST_CHANNELS,
        description="rank of the expert that extending a detector adds; 0: none, and the whole adapter is trained",
    )
    kept_tokens: int = Field(
        0,
        ge=0,
        description="training images whose tokens before the first adapted block are kept beside the adapter, half of "
        "each class, to be replayed when it is extended",
    )
    replay_weight: float = Field(
        1.0, ge=0, description="weight of the change on replayed tokens, KL in nats, when a detector is extended"
    )
    sampling: Literal["every", "classes", "sqrt", "generators"] = Field(
        "every",
        description="every: each image once per epoch; classes: as many photographs as generated images; sqrt and "
        "generators: and of a class each generator (or source of photographs) by the root of its images, or alike",
    )
    views_from: int | None = Field(
        None, ge=0, description="seed of the views, so that runs of several seeds share kept tokens; None: seed"
    )
    whole_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of an image's views that show the whole of it at small size instead of a native crop",
    )
    head_start: float | None = Field(
        None,
        gt=0,
        description="the head starts as a logistic regression on the kept class tokens of the head blocks; this is its "
        "C, the inverse of its regularisation. None: at random",
    )
    families: bool | dict[str, str] = Field(
        False,
        description="learn to name the likely family of generators of what is found to be AI-generated: true, each "
        "generator is a family; or a table generator -> family, in which those that are not listed are their own",
    )
    epochs: int = Field(25, gt=0, le=MOST_STEPS)
    min_steps_per_epoch: int | None = Field(
        None,
        gt=0,
        le=MOST_STEPS,
        description="steps of an epoch, at least; few images are then shown several times, in different views",
    )
    patience: int | None = Field(None, gt=0, description="stop after this many epochs without a better val AP")
    batch_size: int = Field(32, gt=0, le=MOST_CHANNELS, description="images of an optimiser step, over all processes")
    accumulation: int = Field(
        1, gt=0, le=MOST_CHANNELS, description="parts in which a batch is computed, one after another"
    )
    clip_norm: float = Field(1.0, gt=0, description="the gradient is scaled down to this norm")
    learning_rate: float = Field(1e-3, gt=0, le=MOST_RATE, description="of the LoRAs, routers and head")
    head_learning_rate: float | None = Field(
        None, gt=0, le=MOST_RATE, description="of the head alone; None: learning_rate"
    )
    tower_learning_rate: float = Field(1e-4, gt=0, le=MOST_RATE, description="of the tower, with full_finetune")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="labels are 1 - s / 2 and s / 2 instead of 1 and 0")
    patch_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the patch tokens that a step leaves out behind the frozen, or the kept, blocks "
        "(PatchDropout, arXiv 2208.07220)",
    )
    weight_decay: float = Field(0.01, ge=0)
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="arithmetic; a processor that is slow in bfloat16 computes in float32 instead"
    )

    @field_validator("backbone", mode="before")
    @classmethod
    def _joined(cls, given: Any) -> Any:
        """A list of names as one name, joined by +."""
        return "+".join(map(str, given)) if isinstance(given, list | tuple) and given else given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.real) != bool(self.fake):
            raise ValueError(f"real={self.real}, fake={self.fake}: give folders for both")
        if self.data is not None and self.real:
            raise ValueError(f"data={self.data!r} and real={self.real}: give data, or real and fake, not all of them")
        if self.full_finetune and self.mole.adapts:
            raise ValueError("full_finetune trains the tower itself: set mole.shared_rank = 0, expert_ranks = []")
        if self.full_finetune and self.cached_views:
            raise ValueError("full_finetune leaves no block frozen: cached_views has nothing to keep")
        plain = self.mole.shared_rank % 5 == 0 and self.mole.shared_rank > 0 and not self.mole.gated_ranks
        if self.hypernetwork and not (plain and self.mole.alpha is None):
            raise ValueError("hypernetwork: set mole.shared_rank to a multiple of 5, expert_ranks = [], and no alpha")
        if self.hypernetwork and (self.cached_views or self.kept_tokens or self.patch_dropout):
            raise ValueError(
                "hypernetwork: it sees noise instead of images, and whole crops of it: leave out cached_views, "
                "kept_tokens and patch_dropout"
            )
        if bool(self.whole_share) != bool(self.preprocess.whole_weight):
            raise ValueError(
                f"whole_share={self.whole_share:g}, preprocess.whole_weight={self.preprocess.whole_weight:g}: a "
                "detector that looks at the whole needs such views in training: set both, or neither"
            )
        if self.head_start is not None and not (self.cached_views and self.mole.head_blocks):
            raise ValueError("head_start: reads kept tokens of the head blocks: set cached_views and mole.head_blocks")
        if self.mole.companion and (self.hypernetwork or self.kept_tokens):
            raise ValueError(
                f"mole.companion={self.mole.companion!r}: reads the pixels themselves, and no image is kept beside an "
                "adapter or replaced by noise: leave out kept_tokens and hypernetwork"
            )
        if self.mole.companion and self.head_start is not None:
            raise ValueError(f"head_start: with mole.companion={self.mole.companion!r} the head reads no class tokens")
        if self.mole.companion == "aide" and self.preprocess.crop_size < 32:
            raise ValueError(f"preprocess.crop_size={self.preprocess.crop_size}: companion = 'aide' needs 32 or more")
        if self.kept_tokens and not self.mole.adapts:
            raise ValueError(f"kept_tokens={self.kept_tokens}: without an adapted block there are none to keep")
        return self

    @property
    def view_seed(self) -> int:
        """Seed of the random numbers for views."""
        return self.seed if self.views_from is None else self.views_from

    def run_settings(self) -> dict[str, Any]:
        """The settings on which a run's weights depend, except its backbone and images: name -> value for JSON.

        Settings in `LATER` are left out if they have their defaults.
        """

        def used(config: Config, values: dict[str, Any]) -> dict[str, Any]:
            own = {key: getattr(config, key) for key in values}
            unused = {key for key in LATER & own.keys() if own[key] == type(config).model_fields[key].default}
            return {
                key: used(own[key], value) if isinstance(own[key], Config) else value
                for key, value in values.items()
                if key not in unused
            }

        return used(self, self.model_dump(mode="json", exclude={"backbone", *LOCATION_SETTINGS}))


AnyConfig = TypeVar("AnyConfig", bound=Config)


def packaged_names(folder: str) -> tuple[str, ...]:
    """Names of the TOML files in a folder of the package, such as "training/presets", sorted, without ".toml"."""
    files = (resources.files("clipmole") / folder).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_packaged(kind: type[AnyConfig], folder: str, name: str | Path) -> AnyConfig:
    """The settings of a preset, or of a TOML file.

    Args:
        kind: their class.
        folder: of the package, as in `packaged_names`.
        name: of a preset in that folder, or else the path of a TOML file.

    Raises `ConfigError` if there is neither, or if it does not validate.
    """
    if str(name) in packaged_names(folder):
        with resources.as_file(resources.files("clipmole") / folder / f"{name}.toml") as path:
            return kind.from_toml(path)
    if Path(name).is_file():
        return kind.from_toml(name)
    kinds, names = folder.rsplit("/", 1)[-1], ", ".join(packaged_names(folder))
    raise ConfigError(f"{kinds} {str(name)!r}: neither a TOML file nor one of {names}")
