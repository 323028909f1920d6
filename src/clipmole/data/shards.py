"""WebDataset shards -> samples: tar files whose members share a key, `000017.jpg` beside `000017.json`.

In: tar files, a folder of them, a pattern with braces or `*`, or addresses. A member `.cls` holds the label, or
`.json` the fields label and, if there, generator, split, group, source and category. Out: samples. A local tar that
is not compressed is indexed and read in place, at random; what is compressed or remote is unpacked. A shard that is
damaged or ends early is refused. It opens no image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from tarfile import TarInfo
from typing import Any

from clipmole.data.containers.filesystems import is_address
from clipmole.data.containers.tar import is_in_place, tar_members
from clipmole.data.labels import SPLITS, read_label, split_in_name, without_lone_train
from clipmole.data.sample import ByteRange, Sample
from clipmole.data.samples import CAMERA, UNNAMED
from clipmole.data.unpack import Unpacking, unpack
from clipmole.errors import DataError
from clipmole.images.discovery import leftover_in, say_passed_over
from clipmole.images.formats import has_image_extension
from clipmole.plumbing.json_toml import parse_json

FACTS = ("cls", "json")


def read_shards(
    source: str, shards: Sequence[str], unsplit: str, how: Unpacking, ai: Collection[str] = (), take: int | None = None
) -> list[Sample]:
    """Samples of shards, in their order.

    Args:
        source: their name in messages.
        shards: paths and addresses of tar files.
        unsplit: the split where neither the sample nor the shard's name (`train-0001.tar`) gives one, and where all
            would be train.
        ai: the labels that mean AI-generated; (): the usual words.
        take: only the first `take` samples; None: all.

    Raises `DataError` naming shard and key: a key without image or label or with two images; and as `unpack` and
    `tar_members` do.
    """
    in_place = all(map(is_in_place, shards))
    passed_over: Counter[str] = Counter()
    images = (_images(shard, unsplit, ai, passed_over, with_bytes=not in_place) for shard in shards)
    found = islice(chain.from_iterable(images), take)
    if in_place:
        samples = [_at(Path(shard), member, fields) for shard, member, _, fields in found]
    else:
        stamps = [f"{shard} {_stamp(shard)}" for shard in shards]
        identity = "\n".join(["shards", unsplit, *sorted(ai), str(take), *stamps])
        samples = unpack(source, identity, ((data, fields) for _, _, data, fields in found), how)
    say_passed_over(passed_over, how.say)
    if not samples:
        raise DataError(f"{source}: holds no samples")
    return without_lone_train(samples, unsplit)


def _stamp(shard: str) -> str:
    """A value that changes when a local shard changes."""
    if is_address(shard):
        return ""
    status = Path(shard).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _at(shard: Path, member: TarInfo, fields: dict[str, Any]) -> Sample:
    """The sample whose image lies in a shard that is read in place."""
    if member.issparse():  # its bytes are not all there
        raise DataError(f"{shard}, {member.name}: its runs of zeros are left out; pack the shard without --sparse")
    inside = ByteRange(file=shard, offset=member.offset_data, size=member.size)
    return Sample.model_validate(fields | {"path": shard / member.name, "inside": inside})


def _images(
    shard: str, unsplit: str, ai: Collection[str], passed_over: Counter[str], with_bytes: bool
) -> Iterator[tuple[str, TarInfo, bytes, dict[str, Any]]]:
    """Shard, member, bytes (empty unless asked for) and sample's fields of each image of a shard."""
    for key, members in _grouped(shard, passed_over, with_bytes):
        image, fields = _fields(shard, key, {ending: data for ending, (_, data) in members.items()}, unsplit, ai)
        yield shard, *members[image], fields


def _grouped(
    shard: str, passed_over: Counter[str], with_bytes: bool
) -> Iterator[tuple[str, dict[str, tuple[TarInfo, bytes]]]]:
    """Neighbouring members of one key: the name up to the first dot after the folders, as WebDataset has it."""
    last, members, known = "", dict[str, tuple[TarInfo, bytes]](), set[str]()
    for member, read in tar_members(shard):
        if kind := leftover_in(member.name):
            passed_over[kind] += 1
            continue
        folder, slash, name = member.name.rpartition("/")
        base, dot, ending = name.partition(".")
        if not base or not dot:
            continue  # hidden files, files without an ending
        key, ending = folder + slash + base, ending.lower()
        if key != last and members:
            yield last, members
            members = {}
        if key != last and key in known:
            raise DataError(f"{shard}, {key}: is there twice, and apart; give each image a key of its own")
        known.add(key)
        last = key
        if ending in members:
            raise DataError(f"{shard}, {key}: .{ending} is there twice")
        members[ending] = member, read() if with_bytes or ending in FACTS else b""
    if members:
        yield last, members


def _fields(
    shard: str, key: str, members: Mapping[str, bytes], unsplit: str, ai: Collection[str]
) -> tuple[str, dict[str, Any]]:
    """Ending of the image among a key's members, and the sample's fields but its path."""
    where = f"{shard}, {key}"
    images = [ending for ending in members if has_image_extension(f"{key}.{ending}")]
    if len(images) != 1:
        raise DataError(f"{where}: {len(images)} images of one key; there must be one, with a .cls or .json beside it")
    values: dict[str, Any] = {}
    try:
        if "json" in members:
            values = parse_json(members["json"])
        elif "cls" in members:
            values = {"label": members["cls"].decode()}
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
