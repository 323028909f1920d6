"""A decoding process: the bytes of an image in, its crops out, under limits of memory and time.

Run as `python -P -m clipmole.serve.decode_worker`, with a JSON object of settings on the command line. If they say that
there is a list of signers to trust, it is the first frame on stdin. All other frames there are answered by frames on
stdout, one at a time, in order:

    frame     two lengths (big-endian, 4 and 8 bytes), a JSON header, a payload
    request   {"provenance", "region"} and the file's bytes
    begun     {"begun": true}, as soon as the request is here; the answer follows
    answer    {"width", "height", "windows", "boxes", "no_content", "sha256", "provenance"}, as in `Crops`, and the
              crops (n, 3, S, S) uint8;
              or {"error": {"code", "message"}} and nothing

It imports no torch, opens no network, writes no file, and ends when stdin does. What libraries print is discarded,
because it may hold parts of the image. It knows nothing of HTTP or of who sent the image, and never gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from typing import Any, BinaryIO

from clipmole.config import PreprocessConfig
from clipmole.errors import ImageError
from clipmole.images.crops import cut_crops
from clipmole.images.loading import ImageLimits, load_pixels
from clipmole.provenance import read_provenance
from clipmole.provenance.findings import Provenance
from clipmole.provenance.trust_list import TrustList

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

FRAME = struct.Struct(">IQ")
NAME = "image"


def read_frame(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next header and payload; None at the end."""
    head = source.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    header, payload = FRAME.unpack(head)
    return json.loads(source.read(header)), source.read(payload)


def write_frame(target: BinaryIO, header: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Write a header and the payload."""
    text = json.dumps(header).encode()
    target.write(FRAME.pack(len(text), len(payload)) + text)
    target.write(payload)
    target.flush()


def answer_request(
    data: bytes,
    config: PreprocessConfig,
    limits: ImageLimits,
    request: dict[str, Any],
    trust_list: TrustList | None = None,
) -> tuple[dict[str, Any], bytes | memoryview]:
    """The answer's header and payload."""
    try:
        image = load_pixels(data, name=NAME, limits=limits)
        crops = cut_crops(image, config, region=request["region"] and tuple(request["region"]))
    except (ImageError, MemoryError) as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            reason = "needs more memory to decode than one image may take; make it smaller"
            return {"error": {"code": "too_large", "message": reason}}, b""
        return {"error": {"code": error.code, "message": error.reason}}, b""
    except ValueError as error:  # the region
        return {"error": {"code": "unreadable", "message": str(error)}}, b""
    header = {
        "width": crops.width,
        "height": crops.height,
        "windows": crops.windows,
        "boxes": crops.boxes,
        "no_content": crops.no_content,
        "sha256": hashlib.sha256(data).hexdigest(),
        "provenance": _provenance(data, limits, trust_list) if request["provenance"] else None,
    }
    return header, crops.pixels.data.cast("B")


def _provenance(data: bytes, limits: ImageLimits, trust_list: TrustList | None) -> dict[str, Any]:
    """What the metadata say, as JSON; if they cannot be read, the detection is given all the same."""
    try:
        found = read_provenance(data, limits=limits, trust_list=trust_list)
    except Exception as error:
        found = Provenance(source=NAME, format="", not_checked=(f"all metadata: {type(error).__name__}",))
    return found.model_dump(mode="json")


def confine(memory: int) -> None:
    """No more than `memory` bytes of address space, no file written, no core dump; Windows has no such limits."""
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_time(seconds: int) -> None:
    """From now on at most about `seconds` of processor time, then SIGXCPU, which ends the process; see `confine`."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, resource.RLIM_INFINITY))


def main() -> None:
    settings = json.loads(sys.argv[1])
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    config = PreprocessConfig.model_validate(settings["preprocess"])
    limits = ImageLimits(max_bytes=settings["max_bytes"], max_pixels=settings["max_pixels"])
    first = read_frame(source) if settings["trust_list"] else None
    trust_list = None if first is None else TrustList(**first[0]["trust_list"])
    confine(settings["memory"])
    write_frame(target, {"ready": True})
    while (frame := read_frame(source)) is not None:
        request, data = frame
        write_frame(target, {"begun": True})
        allow_time(settings["cpu_seconds"])
        write_frame(target, *answer_request(data, config, limits, request, trust_list))


if __name__ == "__main__":
    main()
