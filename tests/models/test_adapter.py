"""Adapter directories: saved and loaded whole, tied to their backbone, refused in one line when they do not fit."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CALIBRATION, PREPROCESS, tiny_backbone, tiny_network

from clipmole.config import MoLEConfig
from clipmole.errors import CheckpointError, WeightsMismatch
from clipmole.models import adapter as checkpoint
from clipmole.models import univfd
from clipmole.models.adapter import load_adapter, push_adapter, save_adapter
from clipmole.models.backbone import save_tower
from clipmole.models.network import MoLENetwork
from clipmole.models.univfd import import_univfd


@pytest.fixture
def backbone_dir(tmp_path: Path) -> Path:
    save_tower(tiny_backbone().tower, tmp_path / "tiny", torch.float32)
    return tmp_path / "tiny"


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    backbone = tiny_backbone()
    out = tmp_path / "adapter"
    save_adapter(out, tiny_network(backbone), backbone, PREPROCESS, CALIBRATION, {"seed": 1}, "# Card")
    return out


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_saved_adapter_loads_as_it_was(adapter_dir: Path, backbone_dir: Path) -> None:
    network = tiny_network(tiny_backbone())
    loaded = load_adapter(adapter_dir, backbone_dir)
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.network(crops), network(crops))
    assert loaded.calibration == CALIBRATION
    assert loaded.config.preprocess == PREPROCESS
    assert loaded.name == "adapter"
    assert not loaded.network.training


def test_an_adapter_from_before_families_loads_as_it_was(adapter_dir: Path, backbone_dir: Path) -> None:
    path = adapter_dir / "config.json"
    config = json.loads(path.read_text())
    assert config["mole"].pop("families") is None
    path.write_text(json.dumps(config))
    loaded = load_adapter(adapter_dir, backbone_dir)
    assert loaded.network.config == tiny_network().config
    assert loaded.network.families is None
    assert loaded.network(torch.zeros(2, 3, 32, 32)).shape == (2,)


def test_the_file_holds_what_was_trained_and_nothing_else(adapter_dir: Path) -> None:
    names = set(load_file(adapter_dir / "adapter.safetensors"))
    assert names == {
        f"tower.blocks.{block}.mlp.{part}" for block in (6, 7) for part in ("lora_A", "lora_B", "router.weight")
    } | {"head.weight", "head.bias"}
    assert sorted(path.name for path in adapter_dir.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "calibration.json",
        "config.json",
        "train.json",
    ]


def test_a_fully_finetuned_tower_is_stored_with_the_head(tmp_path: Path, backbone_dir: Path) -> None:
    backbone = tiny_backbone()
    network = MoLENetwork(backbone.tower, MoLEConfig(shared_rank=0, expert_ranks=()), full_finetune=True).eval()
    torch.nn.init.normal_(network.tower.blocks[0].mlp.fc1.weight)
    save_adapter(tmp_path / "full", network, backbone, PREPROCESS)
    loaded = load_adapter(tmp_path / "full", backbone_dir).network
    crops = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(crops), network(crops))


def test_half_precision_storage_rounds_and_loads_as_float32(tmp_path: Path, backbone_dir: Path) -> None:
    backbone = tiny_backbone()
    network = tiny_network(backbone)
    save_adapter(tmp_path / "half", network, backbone, PREPROCESS, dtype=torch.float16)
    loaded = load_adapter(tmp_path / "half", backbone_dir).network
    assert loaded.head.weight.dtype == torch.float32
    assert torch.equal(loaded.head.weight, network.head.weight.half().float())


def test_an_older_adapter_is_replaced_as_a_whole(adapter_dir: Path, backbone_dir: Path) -> None:
    backbone = tiny_backbone()
    save_adapter(adapter_dir, tiny_network(backbone, seed=2), backbone, PREPROCESS)
    assert load_adapter(adapter_dir, backbone_dir).calibration is None
    assert not (adapter_dir / "train.json").exists()
    assert [p.name for p in adapter_dir.parent.iterdir() if p.name.startswith(".")] == []


def test_a_failed_write_leaves_the_older_adapter(adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in adapter_dir.iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    backbone = tiny_backbone()
    with pytest.raises(CheckpointError, match="No space left on device; nothing was changed") as error:
        save_adapter(adapter_dir, tiny_network(backbone), backbone, PREPROCESS)
    one_line(error)
    assert {path.name: path.read_bytes() for path in adapter_dir.iterdir()} == before


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    backbone = tiny_backbone()
    with pytest.raises(
        CheckpointError, match=r"is not an adapter directory: it has no config\.json, and holds a\.jpg; name"
    ):
        save_adapter(tmp_path / "photos", tiny_network(backbone), backbone, PREPROCESS)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"x"


def test_a_folder_with_a_file_of_others_is_not_replaced(adapter_dir: Path, tmp_path: Path) -> None:
    ours, theirs = adapter_dir, tmp_path / "project"
    (ours / "thesis.txt").write_text("years of work")
    theirs.mkdir()
    (theirs / "config.json").write_text('{"format_version": "of an application"}')
    backbone = tiny_backbone()
    for folder, reason in {
        ours: "holds thesis.txt, which does not belong to an adapter",
        theirs: "config.json: ",
    }.items():
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(CheckpointError, match=reason):
            save_adapter(folder, tiny_network(backbone), backbone, PREPROCESS)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_backbone_of_the_same_shape_is_refused(adapter_dir: Path, tmp_path: Path) -> None:
    save_tower(tiny_backbone(seed=5).tower, tmp_path / "other", torch.float32)
    with pytest.raises(CheckpointError, match=r"was made for backbone tiny .*give the right backbone") as error:
        load_adapter(adapter_dir, tmp_path / "other")
    assert tiny_backbone().sha256[:12] in one_line(error)


def test_a_sibling_of_the_backbone_is_used_if_asked_for_and_said_to_be_unmeasured(
    adapter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sibling = replace(tiny_backbone(seed=1), id="vit-b-16")
    wanted = json.loads((adapter_dir / "config.json").read_text())
    wanted["backbone"]["id"] = "clip-vit-b-16-int8"
    (adapter_dir / "config.json").write_text(json.dumps(wanted))
    own = tiny_backbone()
    monkeypatch.setattr(checkpoint, "load_backbone", lambda name, **_: sibling if name == "vit-b-16" else own)
    loaded = load_adapter(adapter_dir, "vit-b-16")
    assert loaded.name == "adapter on vit-b-16 (not measured)"
    assert loaded.calibration is None
    assert load_adapter(adapter_dir).calibration == CALIBRATION
    monkeypatch.setattr(checkpoint, "load_backbone", lambda *_, **__: tiny_backbone(seed=2))
    with pytest.raises(CheckpointError, match="give the right backbone"):  # any other one
        load_adapter(adapter_dir, "vit-b-32")


def test_a_backbone_directory_must_be_named(adapter_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"backbone directory 'tiny'.*--backbone") as error:
        load_adapter(adapter_dir)
    one_line(error)


def edit_config(adapter: Path, **changes: object) -> None:
    values = json.loads((adapter / "config.json").read_text()) | changes
    (adapter / "config.json").write_text(json.dumps(values))


def test_an_unknown_format_version_is_refused_before_anything_else(adapter_dir: Path, backbone_dir: Path) -> None:
    edit_config(adapter_dir, format_version=2, something_new=1)
    with pytest.raises(CheckpointError, match=r"format version 2, and this clipmole reads 1; update clipmole"):
        load_adapter(adapter_dir, backbone_dir)


@pytest.mark.parametrize("version", [True, 1.0, "1"])
def test_a_format_version_of_another_type_is_refused(version: object, adapter_dir: Path, backbone_dir: Path) -> None:
    edit_config(adapter_dir, format_version=version)
    with pytest.raises(CheckpointError, match=rf"format version {version}, and this clipmole reads 1"):
        load_adapter(adapter_dir, backbone_dir)


def test_an_unknown_setting_is_refused_by_name(adapter_dir: Path, backbone_dir: Path) -> None:
    edit_config(adapter_dir, colour="red")
    with pytest.raises(CheckpointError, match=r"config\.json: colour") as error:
        load_adapter(adapter_dir, backbone_dir)
    one_line(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
@pytest.mark.parametrize("which", ["adapter", "backbone"])
def test_a_pipe_in_the_place_of_weights_is_not_waited_for(which: str, adapter_dir: Path, backbone_dir: Path) -> None:
    path = adapter_dir / "adapter.safetensors" if which == "adapter" else backbone_dir / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((CheckpointError, WeightsMismatch), match=rf"{path.name}.* is a pipe or a device, not a file"):
        load_adapter(adapter_dir, backbone_dir)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\x00"])
def test_a_damaged_configuration_is_refused(adapter_dir: Path, backbone_dir: Path, text: str) -> None:
    (adapter_dir / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"is not (JSON|an adapter's configuration)") as error:
        load_adapter(adapter_dir, backbone_dir)
    one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), r"misses 1 tensors: head\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "has unknown 1 tensors: extra"),
        (lambda t: t.update({"head.bias": torch.zeros(2)}), r"head\.bias is \(2,\), not \(1,\)"),
        (lambda t: t.update({"head.bias": torch.tensor([float("nan")])}), r"head\.bias holds values .* not finite"),
    ],
    ids=["missing", "extra", "misshapen", "nan"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    adapter_dir: Path, backbone_dir: Path, change: object, message: str
) -> None:
    tensors = load_file(adapter_dir / "adapter.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, adapter_dir / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        load_adapter(adapter_dir, backbone_dir)
    one_line(error)


def test_truncated_weights_and_a_damaged_calibration_are_refused(adapter_dir: Path, backbone_dir: Path) -> None:
    (adapter_dir / "calibration.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"calibration\.json: is damaged"):
        load_adapter(adapter_dir, backbone_dir)
    (adapter_dir / "calibration.json").write_text(json.dumps(CALIBRATION.model_dump(mode="json") | {"slope": 1e308}))
    with pytest.raises(CheckpointError, match=r"is damaged \(slope: .*1e\+308.*; fit the calibration again") as error:
        load_adapter(adapter_dir, backbone_dir)
    one_line(error)
    weights = adapter_dir / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors: cannot be read") as error:
        load_adapter(adapter_dir, backbone_dir)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-thing", "no such detector; give default, mole-vit-b-16, embedded, an adapter directory, or a hub id"),
        ("vit-l-14", "is a backbone, not a detector"),
    ],
)
def test_names_that_are_no_detector_are_refused(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_adapter(name)


def test_a_folder_without_a_configuration_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape("is not an adapter directory: it has no config.json")):
        load_adapter(tmp_path)


def test_the_digest_changes_with_weights_and_calibration(adapter_dir: Path, backbone_dir: Path) -> None:
    first = load_adapter(adapter_dir, backbone_dir).digest
    assert load_adapter(adapter_dir, backbone_dir).digest == first
    (adapter_dir / "calibration.json").unlink()
    assert load_adapter(adapter_dir, backbone_dir).digest != first


class FakeHub:
    """A stand-in for the Hugging Face Hub on the local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        assert not private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str):
        assert commit_message
        for name in allow_patterns:
            if (folder_path / name).is_file():
                shutil.copy(folder_path / name, self.root / repo_id / name)

        class Commit:
            commit_url = f"https://hub.invalid/{repo_id}/commit/1"

        return Commit()


def test_an_adapter_goes_to_a_hub_and_comes_back(
    adapter_dir: Path, backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token: {None: hub}[token])
    monkeypatch.setattr(checkpoint, "hub_files", lambda repo_id, *_, **__: hub.root / repo_id)
    (adapter_dir / "private-notes.txt").write_text("stays here")
    assert push_adapter(adapter_dir, "someone/detector").endswith("/someone/detector/commit/1")
    loaded = load_adapter("someone/detector", backbone_dir)
    assert loaded.name == "someone/detector"
    assert loaded.digest == load_adapter(adapter_dir, backbone_dir).digest
    assert not (hub.root / "someone/detector/private-notes.txt").exists()


def test_a_folder_that_is_no_adapter_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not an adapter directory"):
        push_adapter(tmp_path, "someone/detector")


def test_univfd_head_becomes_an_adapter_without_experts(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a random tower whose feature has CLIP ViT-L/14's 768 channels."""
    backbone = tiny_backbone(projection_dim=768)
    for reader in (univfd, checkpoint):
        monkeypatch.setattr(reader, "load_backbone", lambda *_, **__: backbone)
    head = shared_dir / "reference" / "univfd_fc_weights.pth"
    import_univfd(head, tmp_path / "univfd")
    loaded = load_adapter(tmp_path / "univfd")
    published = torch.load(head, map_location="cpu", weights_only=True)
    crops = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        features = backbone.tower((crops - loaded.network.mean) / loaded.network.std)
        expected = features @ published["weight"][0] + published["bias"]
        assert torch.allclose(loaded.network(crops), expected, atol=1e-5)
    assert loaded.network.mole_layers == ()
    assert loaded.config.preprocess.mode == "center_crop"
    assert loaded.calibration is None


def test_a_file_that_is_not_univfd_head_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"cos\nsystem\n(S'echo hacked'\ntR.")
    with pytest.raises(CheckpointError, match="is not UnivFD's published head"):
        import_univfd(tmp_path / "head.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_univfd_head_does_not_go_on_another_tower(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(univfd, "load_backbone", lambda *_, **__: tiny_backbone())
    with pytest.raises(CheckpointError, match="has 24 channels, and UnivFD's head reads 768"):
        import_univfd(shared_dir / "reference" / "univfd_fc_weights.pth", tmp_path / "out")
