"""JSON and TOML of unknown origin, read within limits: any problem is reported in one clear line.

In: a path, or bytes. Out: their values. Refused are files that are not regular (a FIFO would keep the reader waiting, a
device has no end), too large, nested too deeply, or that hold integers of thousands of digits. It knows nothing
of what the values mean.
"""

from __future__ import annotations

import json
import stat
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmole.errors import ClipmoleError, ConfigError

MOST_BYTES = 64 * 2**20  # far more than the largest such file that clipmole writes, a comparison's logits
INTEGERS = range(-(2**63), 2**64)  # those that other programs can read too


class NotReadable(ValueError):
    """A file or bytes cannot be read; the message is a sentence without its subject."""


def read_regular_file(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `NotReadable`."""
    try:
        kind = Path(path).stat()
        if not stat.S_ISREG(kind.st_mode):
            raise NotReadable("is a directory" if stat.S_ISDIR(kind.st_mode) else "is not a regular file")
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise NotReadable(f"cannot be read: {error.strerror or error}") from error
    except NotReadable:
        raise
    except ValueError as error:  # a path that no file can have
        raise NotReadable(f"cannot be read: {error}") from error
    if len(data) > most:
        raise NotReadable(f"is larger than {most / 2**20:g} MiB")
    return data


def parse_json(data: bytes | str) -> Any:
    """The value of JSON in UTF-8; a byte order mark is skipped. Raises `NotReadable`."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, parse_int=_integer)
    except NotReadable:
        raise
    except RecursionError as error:
        raise NotReadable("is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise NotReadable(f"is not JSON: {error}") from error


def parse_toml(data: bytes) -> dict[str, Any]:
    """The values of TOML in UTF-8; a byte order mark is skipped. Raises `NotReadable`."""
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))
        _check_integers(values)
    except NotReadable:
        raise
    except RecursionError as error:
        raise NotReadable("is not TOML that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise NotReadable(f"is not a TOML file: {error}") from error
    return values


def read_json(path: str | Path, error: type[ClipmoleError], cure: str = "") -> Any:
    """The value of a JSON file.

    Args:
        error: the class of error that is raised if it cannot be read.
        cure: what the user can do then; the message ends with it.
    """
    try:
        return parse_json(read_regular_file(path))
    except NotReadable as reason:
        raise error(f"{path}: {reason}" + (f"; {cure}" if cure else "")) from reason


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file. Raises `ConfigError` if it cannot be read."""
    try:
        return parse_toml(read_regular_file(path))
    except NotReadable as reason:
        raise ConfigError(f"{path}: {reason}") from reason


def checksum(row: dict[str, Any]) -> int:
    """CRC-32 of a JSON object without its key "crc32", the same after it is written and read again."""
    return zlib.crc32(json.dumps({key: value for key, value in row.items() if key != "crc32"}).encode())


def flattened(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested dict as one with dotted keys, as in TOML."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _integer(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in INTEGERS:
        raise NotReadable(f"is not JSON that can be read: {digits[:20]}... is too large an integer")
    return int(digits)


def _check_integers(value: Any) -> None:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_integers(each)
    elif isinstance(value, int) and value not in INTEGERS:
        raise NotReadable("is not TOML that can be read: it holds an integer of more than 64 bits")
