"""The limits of the server: sizes, numbers, waiting times.

In: keyword arguments, checked by pydantic. Out: a frozen `ServeSettings`. It knows nothing of HTTP or images.
"""

from __future__ import annotations

import os
from typing import Self

from pydantic import Field, model_validator

from clipmole.config import Config

MIB = 2**20


def default_workers() -> int:
    """One decoding process per core, from two to four."""
    return max(2, min(4, os.cpu_count() or 1))


class ServeSettings(Config):
    """Limits of a server. Whatever goes over one is refused with an error that names the limit.

    `max_buffered_bytes` bounds the memory that uploads take together; `memory_bytes` what one decoding process may
    take. Together with the detector they bound the server's memory.
    """

    max_image_bytes: int = Field(40 * MIB, gt=0, description="of one image file")
    max_request_bytes: int = Field(128 * MIB, gt=0, description="of one request's body")
    max_buffered_bytes: int = Field(512 * MIB, gt=0, description="of all uploads that are held at one time")
    max_pixels: int = Field(64_000_000, gt=0, description="width x height of one image")
    max_images: int = Field(32, gt=0, description="in one request")
    max_token_images: int = Field(4, gt=0, description="in one request with evidence=tokens, which takes long")
    max_requests: int = Field(64, gt=0, description="being read or answered at one time")
    max_queue: int = Field(128, gt=0, description="images accepted and not yet answered")
    max_connections: int = Field(512, gt=0, description="open at one time")
    header_seconds: float = Field(10.0, gt=0, description="for a request's head to arrive")
    chunk_seconds: float = Field(10.0, gt=0, description="between two pieces of a body")
    body_seconds: float = Field(60.0, gt=0, description="for a whole body to arrive")
    answer_seconds: float = Field(300.0, gt=0, description="from the whole body to the answer")
    write_seconds: float = Field(30.0, gt=0, description="for a client to take what is written to it")
    shutdown_seconds: float = Field(60.0, gt=0, description="to finish what was accepted when told to stop")
    workers: int = Field(default_factory=default_workers, gt=0, description="decoding processes")
    decode_seconds: float = Field(20.0, gt=0, description="for one image to be decoded, by the clock")
    decode_cpu_seconds: int = Field(15, gt=0, description="the same, of processor time")
    memory_bytes: int = Field(0, ge=0, description="address space of a decoding process; 0: what max_pixels takes")
    batch_wait: float = Field(0.005, ge=0, description="seconds that a batch waits for more images")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names this server answers to; (): on loopback localhost and its addresses, elsewhere all"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_image_bytes > self.max_request_bytes:
            raise ValueError(
                f"max_image_bytes={self.max_image_bytes}: more than max_request_bytes={self.max_request_bytes}"
            )
        if self.max_request_bytes > self.max_buffered_bytes:
            raise ValueError(
                f"max_request_bytes={self.max_request_bytes}: more than max_buffered_bytes={self.max_buffered_bytes}"
            )
        if self.max_images > self.max_queue:
            raise ValueError(f"max_images={self.max_images}: more than max_queue={self.max_queue}")
        return self

    @property
    def worker_memory(self) -> int:
        """Address space that a decoding process may take, bytes.

        512 MiB for Python and its libraries, the file twice, and 20 bytes per pixel: four decoded images of 4 bytes
        (see `images.loading`) and room for one more.
        """
        return self.memory_bytes or 512 * MIB + 2 * self.max_image_bytes + 20 * self.max_pixels
