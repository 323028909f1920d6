"""Loads a tower and its weights: a preset, a repository on the hub, or a directory.

In: a name. Out: a frozen `ViT` with the id, the revision and the sha256 that tie an adapter to it. It knows
nothing of images or adapters; `weight_layouts` knows how files name their tensors, and `hub` fetches files.

Weights are read from safetensors, or from .bin, .pt and .pth files of plain tensors; no file can run code. A
safetensors file may hold matrices in int8, with a scale per output channel (`int8_matrices`).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipmole.errors import WeightsError, WeightsMismatch, WeightsNotFound
from clipmole.models.hub import HUB_ID, hub_files
from clipmole.models.vit import Concatenated, ViT
from clipmole.models.weight_layouts import Json, ParameterSource, Shape, listed, match, tower_and_layouts
from clipmole.plumbing.files import is_odd_file, replacing_folder, sha256_of, why_not_replaceable
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.text import first_line

PACKAGED_DETECTORS = Path(str(files("clipmole"))) / "detectors"  # one folder each
SAFETENSORS = ("model.safetensors", "open_clip_model.safetensors")
PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
JOINT = "+"  # between the names of backbones that are concatenated
CONFIG, OPEN_CLIP, PREPROCESSOR = "config.json", "open_clip_config.json", "preprocessor_config.json"


@dataclass(frozen=True)
class Backbone:
    """A tower and where it comes from.

    Attributes:
        tower: float32, in eval mode, with no parameter that requires a gradient.
        id: the name of a preset, a hub id, or the name of a directory without its path; several joined by +.
        revision: commit on the hub; None for a directory.
        sha256: `tower_sha256` of the tower; for several, see `concatenated`.
        directory: absolute path of the directory that was named; None for a preset, a hub id, or several backbones.
    """

    tower: ViT
    id: str
    revision: str | None
    sha256: str
    directory: Path | None = None


@dataclass(frozen=True)
class Preset:
    """Weights that are pinned: on the hub, in a package of weights, or in clipmole itself.

    Attributes:
        hub_id: the repository on the hub; None if the weights are in a package.
        revision: the commit of that repository.
        weight_file: name of the weight file.
        file_sha256: of the whole weight file, checked whenever it is loaded; None if it is not known.
        package: the package of weights, which is not imported; None for clipmole itself.
        tower_sha256: `tower_sha256` of the weights, so that it need not be computed each time; None if not known.
    """

    hub_id: str | None = None
    revision: str | None = None
    weight_file: str = SAFETENSORS[0]
    file_sha256: str | None = None
    package: str | None = None
    tower_sha256: str | None = None


PRESETS: dict[str, Preset] = {
    "vit-b-32": Preset("openai/clip-vit-base-patch32", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268", "pytorch_model.bin"),
    "vit-b-16": Preset("openai/clip-vit-base-patch16", "57c216476eefef5ab752ec549e440a49ae4ae5f3", "pytorch_model.bin"),
    "vit-l-14": Preset(
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "model.safetensors",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
    "clip-vit-b-16-int8": Preset(
        weight_file="model.int8.safetensors",
        file_sha256="935603ac59df264e4eba4bb7b7212d57dc028f934c0a46a59b84620ab3e946a3",
        package="clipmole_clip_vit_b_16",
        tower_sha256="0ac89e67d2d4c85b83792d6554fcd6e5b8665d51f6fe98efe5106d124aee30db",
    ),
    "embedded": Preset(),
}


def load_backbone(name: str | Path, *, revision: str | None = None, cache_dir: Path | None = None) -> Backbone:
    """Load a frozen tower.

    Args:
        name: a preset of `PRESETS`; else a directory, if there is one; else a hub id "owner/name". Several, joined
            by +, make one tower with the features of all.
        revision: commit, branch or tag of a hub id. A preset is pinned, and a directory has none.
        cache_dir: where hub files are kept; None: huggingface_hub's cache.

    A directory holds one weight file and, except for OpenAI's own state dict, the config.json (or OpenCLIP's
    open_clip_config.json) that belongs to it. Pixels are normalised as its preprocessor_config.json says,
    else as is usual for its kind of tower: `tower.config.mean` and `std`.

    Raises:
        WeightsNotFound: there is no such name, file or revision, or it is not in the cache and there is no network.
        WeightsMismatch: the weights are damaged, do not fit, or are not plain tensors.
    """
    if isinstance(name, str) and JOINT in name and not Path(name).is_dir():
        if revision is not None:
            raise WeightsNotFound(f"{name}: cannot be had at revision {revision!r}; only a single hub id has revisions")
        return concatenated([load_backbone(part, cache_dir=cache_dir) for part in name.split(JOINT)])
    preset = PRESETS.get(name) if isinstance(name, str) else None
    weights, label, commit = find_weights(name, preset, revision, cache_dir)
    tower = read_tower(weights, f"{name}/{weights.name}", preset.file_sha256 if preset else None)
    known = preset.tower_sha256 if preset and preset.file_sha256 else None
    named = weights.parent.resolve() if preset is None and commit is None else None
    return Backbone(tower, label, commit, known or tower_sha256(tower), named)


def concatenated(parts: Sequence[Backbone]) -> Backbone:
    """Several backbones as one, with their features side by side (`Concatenated`).

    Its sha256 is that of the parts' sha256, in their order, one a line.
    """
    digest = hashlib.sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest()
    tower = Concatenated([part.tower for part in parts]).eval().requires_grad_(False)
    return Backbone(tower, JOINT.join(part.id for part in parts), None, digest)


def find_weights(
    name: str | Path, preset: Preset | None, revision: str | None, cache_dir: Path | None
) -> tuple[Path, str, str | None]:
    """(weight file, id, commit) of a backbone; its configuration files lie beside the weight file.

    Args:
        preset: the one called `name`, if any.
        name, revision, cache_dir: as in `load_backbone`.

    Raises `WeightsNotFound`.
    """
    folder = packaged_weights(preset) if preset and preset.hub_id is None else Path(name)
    if revision is not None and (preset or folder.is_dir()) and revision != (preset and preset.revision):
        raise WeightsNotFound(f"{name}: cannot be had at revision {revision!r}; only a hub id has revisions")
    if preset is not None and preset.hub_id is not None:
        wanted = [preset.weight_file, CONFIG]
        folder = hub_files(preset.hub_id, wanted, revision=preset.revision, cache_dir=cache_dir)
        return folder / preset.weight_file, str(name), preset.revision
    if folder.is_dir():
        return weight_file(folder, str(name)), str(name) if preset else folder.resolve().name, None
    if preset is not None:
        where = preset.package.replace("_", "-") if preset.package else "clipmole"
        raise WeightsNotFound(
            f"{name}: its weights are not installed; install the package {where}, or name another one"
        )
    if isinstance(name, str) and HUB_ID.fullmatch(name) and not folder.exists():
        optional = [CONFIG, OPEN_CLIP, PREPROCESSOR]
        folder = hub_files(name, [SAFETENSORS + PICKLES], optional=optional, revision=revision, cache_dir=cache_dir)
        return weight_file(folder, name), name, folder.name
    reason = "is a file; give its directory" if folder.is_file() else "is not there"
    raise WeightsNotFound(
        f"{name}: {reason}; a backbone is one of {', '.join(PRESETS)}, a directory, or a hub id owner/name"
    )


def packaged_weights(preset: Preset) -> Path:
    """The folder of a preset's weights in a package, found without importing it; it need not exist."""
    if preset.package is None:
        return PACKAGED_DETECTORS / "embedded" / "backbone"
    spec = find_spec(preset.package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0] if locations else preset.package) / "backbone"


def is_installed(name: str) -> bool:
    """Whether a package with the weights of a preset is installed."""
    preset = PRESETS.get(name)
    return preset is not None and preset.hub_id is None and packaged_weights(preset).is_dir()


def weight_file(folder: Path, source: str) -> Path:
    """The weight file of a folder: of those in safetensors, else of the others, one with a usual name or the only one.

    Raises `WeightsNotFound` if there is none, or if there are several; `source` names the folder in the message.
    """
    for usual, patterns in ((SAFETENSORS, ["*.safetensors"]), (PICKLES, ["*.bin", "*.pt", "*.pth"])):
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        named = [folder / name for name in usual if folder / name in found]
        if named or len(found) == 1:
            return (named or found)[0]
        if found:
            names = listed([path.name for path in found])
            raise WeightsNotFound(f"{source}: holds several weight files ({names}); leave one, saved as one file")
    raise WeightsNotFound(f"{source}: holds no weights (*.safetensors, *.bin, *.pt or *.pth)")


def read_tower(path: Path, source: str, file_sha256: str | None = None) -> ViT:
    """A frozen float32 tower from a weight file and the configuration files beside it.

    Args:
        path: the weight file.
        source: its name in messages.
        file_sha256: the sha256 that the whole file must have; None: any.

    Raises `WeightsMismatch`.
    """
    if file_sha256 is not None:
        given = sha256_of(path)
        if given != file_sha256:
            raise WeightsMismatch(
                f"{source}: sha256 is {given[:12]}..., and not {file_sha256[:12]}... as pinned; delete {path} and "
                "fetch it again"
            )
    beside = (_json_object(path.parent / name) for name in (CONFIG, OPEN_CLIP, PREPROCESSOR))
    with open_weights(path, source) as (shapes, tensor_of):
        config, layouts = tower_and_layouts(shapes, source, *beside)
        with torch.device("meta"):
            tower = ViT(config)
        parameters = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
        parts = match(parameters, layouts, shapes, source)
        state = {name: assemble(part, tensor_of) for name, part in parts.items()}
    tower.load_state_dict(state, assign=True)
    return tower.eval().requires_grad_(False)


def _json_object(path: Path) -> Json | None:
    """The JSON object in a configuration file; None if there is no such file."""
    if not path.exists():
        return None
    values = read_json(path, WeightsMismatch)
    if not isinstance(values, dict):
        raise WeightsMismatch(f"{path}: is not a JSON object")
    return values


@contextmanager
def open_weights(path: Path, source: str) -> Iterator[tuple[dict[str, Shape], Callable[[str], Tensor]]]:
    """Names and shapes of a file's tensors, and a function that reads one of them as float32.

    Raises `WeightsMismatch` if the file is damaged; `source` names it in the message.
    """
    if is_odd_file(path):
        raise WeightsMismatch(f"{source}: {path.name} is a pipe or a device, not a file of weights")
    if path.suffix != ".safetensors":
        tensors = read_pickle(path, source)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        yield shapes, lambda name: own_copy(tensors[name], f"{source}: {name}")
        return
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsMismatch(f"{source}: is damaged or not a safetensors file ({first_line(error)})") from error
    with handle as file:
        kinds = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(kind.get_shape()) for name, kind in kinds.items()}
        scales = int8_matrices(shapes, {name: kind.get_dtype() for name, kind in kinds.items()}, source)

        def tensor_of(name: str) -> Tensor:
            tensor, what = file.get_tensor(name), f"{source}: {name}"
            return (
                dequantized(tensor, file.get_tensor(scales[name]), what) if name in scales else own_copy(tensor, what)
            )

        yield {name: shape for name, shape in shapes.items() if name not in scales.values()}, tensor_of


SCALE = "_scale"  # NAME_scale holds the scales of the int8 matrix NAME


def int8_matrices(shapes: dict[str, Shape], dtypes: dict[str, str], source: str) -> dict[str, str]:
    """Names of the int8 matrices of a safetensors file -> names of their scales.

    The weights are W (out, ...) = NAME * NAME_scale[:, None]: symmetric quantisation, one float32 scale per output
    channel. Raises `WeightsMismatch` for an int8 matrix without scales that fit.

    Args:
        shapes, dtypes: name of each tensor -> its shape, and its dtype as safetensors names it.
        source: the name of the file in messages.
    """
    found = {name: name + SCALE for name, dtype in dtypes.items() if dtype == "I8"}
    for name, scale in found.items():
        if not shapes[name] or dtypes.get(scale) != "F32" or shapes[scale] != shapes[name][:1]:
            raise WeightsMismatch(f"{source}: {name} is int8, and {scale} does not hold a float32 scale for each row")
    return found


def dequantized(matrix: Tensor, scale: Tensor, source: str) -> Tensor:
    """The float32 matrix (out, ...) of an int8 one and its scales (out,).

    Raises `WeightsMismatch` unless all scales are finite and positive.
    """
    if not (all_finite(scale * 128) and bool((scale > 0).all())):
        raise WeightsMismatch(f"{source}: its scales are not all finite and positive; the file is damaged")
    return matrix.float().mul_(scale.view(-1, *[1] * (matrix.dim() - 1)))


def own_copy(tensor: Tensor, source: str) -> Tensor:
    """A float32 copy of dense floating-point weights. Raises `WeightsMismatch` for others, or if one is not finite."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise WeightsMismatch(f"{source} is {tensor.dtype}; only dense floating-point weights are read")
    tensor = tensor.detach().to(torch.float32, copy=True)
    if not all_finite(tensor):
        raise WeightsMismatch(f"{source} holds values that are not finite; the file is damaged")
    return tensor


def read_pickle(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors in a file of torch.save, read without running any code in it; mapped from disk if possible.

    Raises `WeightsMismatch` for a TorchScript archive, for anything but tensors, and for a damaged file.
    """
    script = False
    try:
        if zipped := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        state = None if script else torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # pickle, zip and torch each raise errors of their own
        raise WeightsMismatch(
            f"{source}: is damaged, or holds more than plain tensors and is not run; fetch it again, or save its "
            "state dict as safetensors where you trust it"
        ) from error
    if script:
        raise WeightsMismatch(
            f"{source}: is a TorchScript archive, which holds code, and is not run; if you trust it, save its tensors "
            "once: torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'model.pt')"
        )
    for key in ("state_dict", "model"):  # training checkpoints of OpenCLIP, and of SynCLR
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = {name.removeprefix("module."): tensor for name, tensor in state[key].items()}
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsMismatch(f"{source}: is not a state dict of tensors; save the model's state_dict()")
    return state


def assemble(part: ParameterSource, tensor_of: Callable[[str], Tensor]) -> Tensor:
    """One parameter of the tower, put together from the tensors of a file; `tensor_of` reads one of these."""
    pieces = [tensor_of(name).T if part.transposed else tensor_of(name) for name in part.sources]
    whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return whole.reshape(part.shape).contiguous()


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: one pass, many times faster than `tensor.isfinite().all()`."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def tower_sha256(tower: ViT) -> str:
    """Digest of the weights, whatever file they came from.

    It is the sha256 over the parameters in the order of their names: name, shape, then float32 little-endian bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(np.ascontiguousarray(values, dtype="<f4").data)
    return digest.hexdigest()


def save_tower(tower: ViT, directory: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a tower as config.json and model.safetensors, a directory that `load_backbone` reads.

    An older backbone directory is replaced as a whole.

    Args:
        tower: without an adapter.
        directory: to be written.
        dtype: of the stored weights. float16 rounds them: what is read back has another `tower_sha256`.

    Raises:
        WeightsMismatch: the tower has an adapter in it, or a weight that `dtype` cannot hold.
        WeightsError: the directory holds something else, or cannot be written.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tower.state_dict().items()}
    with torch.device("meta"):
        bare = ViT(tower.config).state_dict()
    reasons = [f"{name} belongs to an adapter; save the tower without it" for name in state if name not in bare]
    reasons += [f"{name} is not finite as {dtype}" for name, tensor in state.items() if not all_finite(tensor)]
    if reasons:
        raise WeightsMismatch(f"{directory}: not saved: {reasons[0]}")
    settings = {"model_type": "clipmole-vit", "format_version": 1, "tower": tower.config.model_dump(mode="json")}
    target = Path(directory)
    files = {CONFIG: _json_object, SAFETENSORS[0]: None}
    if reason := why_not_replaceable(target, "a backbone directory", files):
        raise WeightsError(f"{target}: {reason}")
    try:
        with replacing_folder(target) as folder:
            save_file(state, folder / SAFETENSORS[0], metadata={"format": "pt"})
            (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            # safetensors writes for the owner alone; give the file the permissions of the configuration.
            (folder / SAFETENSORS[0]).chmod((folder / CONFIG).stat().st_mode)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{directory}: cannot be written: {first_line(error)}") from error
