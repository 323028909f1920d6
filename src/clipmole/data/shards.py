"""WebDataset shards -> samples: tar files whose members share a key, `000017.jpg` beside `000017.json`.

In: tar files, a folder of them, a pattern with braces or `*`, or addresses. A member `.cls` holds the label, or
`.json` the fields label and, if there, generator, split, group, source and category. Out: samples. A local tar that
is not compressed is indexed and read in place, at random; what is compressed or remote is unpacked. It opens no image.
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmole.data.labels import SPLITS, read_label, split_in_name, without_lone_train
from clipmole.data.sample import ByteRange, Sample
from clipmole.data.samples import CAMERA, UNNAMED
from clipmole.data.unpack import Unpacking, unpack
from clipmole.errors import DataError, MissingDependency
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.plumbing.json_toml import parse_json

REMOTE = ("http://", "https://")
FACTS = ("cls", "json")


def read_shards(
    source: str, shards: Sequence[str], unsplit: str, how: Unpacking, ai: Collection[str] = (), take: int | None = None
) -> list[Sample]:
    """Samples of shards, in their order.

    Args:
        source: what to call them all.
        shards: paths and addresses of tar files.
        unsplit: the split where neither the sample nor the shard's name (`train-0001.tar`) gives one, and where all
            would be train.
        ai: the labels that mean AI-generated; (): the usual words.
        take: the first so many samples only; None: all.

    Raises `DataError` naming shard and key: a tar that is damaged, a key without image or label or with two images;
    and as `unpack` does. `MissingDependency` without webdataset, where it is needed.
    """
    if all(_in_place(shard) for shard in shards):
        samples: list[Sample] = []
        for shard in shards:
            for place, fields in _indexed(Path(shard), unsplit, ai):
                if take is not None and len(samples) >= take:
                    break
                samples.append(Sample.model_validate(fields | {"inside": place}))
    else:
        stamps = [f"{shard} {_stamp(shard)}" for shard in shards]
        identity = "\n".join(["shards", unsplit, *sorted(ai), str(take), *stamps])
        samples = unpack(source, identity, _streamed(shards, unsplit, ai, take), how)
    if not samples:
        raise DataError(f"{source}: holds no samples")
    return without_lone_train(samples, unsplit)


def _in_place(shard: str) -> bool:
    return not shard.startswith(REMOTE) and shard.lower().endswith(".tar")


def _stamp(shard: str) -> str:
    """What changes when a local shard does."""
    if shard.startswith(REMOTE):
        return ""
    status = Path(shard).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _indexed(shard: Path, unsplit: str, ai: Collection[str]) -> Iterator[tuple[ByteRange, dict[str, Any]]]:
    """Where each image of a tar lies, and its sample's fields."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for key, members in _grouped(tar, shard):
                facts = {name: _content(tar, members[name]) for name in FACTS if name in members}
                image, fields = _fields(str(shard), key, members, facts, unsplit, ai)
                member = members[image]
                place = ByteRange(file=shard, offset=member.offset_data, size=member.size)
                yield place, fields | {"path": shard / member.name}
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: cannot be read as a tar file: {error}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _grouped(tar: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members of one key: the name up to the first dot after the folders, as WebDataset has it."""
    last, members = "", dict[str, tarfile.TarInfo]()
    for member in tar:
        folder, slash, name = member.name.rpartition("/")
        base, dot, ending = name.partition(".")
        if not member.isfile() or not base or not dot:
            continue  # folders, links, hidden files, files without an ending
        key = folder + slash + base
        if key != last and members:
            yield last, members
            members = {}
        last = key
        if ending.lower() in members:
            raise DataError(f"{shard}, {key}: .{ending} stands there twice")
        members[ending.lower()] = member
    if members:
        yield last, members


def _streamed(
    shards: Sequence[str], unsplit: str, ai: Collection[str], take: int | None
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bytes and fields of the samples as WebDataset's own reader brings them."""
    try:
        import webdataset
    except ImportError as error:
        raise MissingDependency("webdataset", "data") from error
    for count, item in enumerate(_read(webdataset.WebDataset(list(shards), shardshuffle=False))):
        if take is not None and count >= take:
            return
        members = {name: value for name, value in item.items() if not name.startswith("__")}
        image, fields = _fields(str(item["__url__"]), str(item["__key__"]), members, members, unsplit, ai)
        yield members[image], fields


def _read(items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    iterator = iter(items)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # of tars, gzip and networks: each library has its own
            raise DataError(f"a shard cannot be read: {error}") from error
        yield item


def _fields(
    shard: str, key: str, members: Collection[str], facts: Mapping[str, Any], unsplit: str, ai: Collection[str]
) -> tuple[str, dict[str, Any]]:
    """Ending of the image among a key's members, and the sample's fields but its path."""
    where = f"{shard}, {key}"
    images = [name for name in members if f".{name.rpartition('.')[2]}" in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise DataError(f"{where}: {len(images)} images of one key; there must be one, with a .cls or .json beside it")
    values: dict[str, Any] = {}
    try:
        if "json" in facts:
            values = parse_json(facts["json"])
        elif "cls" in facts:
            values = {"label": facts["cls"].decode()}
        else:
            raise DataError(f'{where}: no label; put it into a member .cls, or into .json under "label"')
        label = read_label(values.get("label"), where, ai)
    except (ValueError, AttributeError) as error:  # json's and unicode's errors are ValueErrors
        raise DataError(f"{where}: .cls or .json is not text with a label: {error}") from error
    split = str(values.get("split") or split_in_name(shard.rpartition("/")[2], unsplit))
    return images[0], {
        "label": label,
        "generator": str(values.get("generator") or (UNNAMED if label else CAMERA)),
        "split": SPLITS.get(split, split),
        "group": str(values.get("group") or ""),
        "source": str(values.get("source") or ""),
        "category": str(values.get("category") or ""),
    }
