"""Errors that a client sees: a stable code, an HTTP status, one line for a person.

In: nothing. Out: `Problem`, raised anywhere below the application and turned into
{"error": {"code", "message"}, "request_id"}. A message never quotes what the client sent.
"""

from __future__ import annotations

STATUS = {
    "bad_request": 400,
    "no_images": 400,
    "unauthorized": 401,
    "cross_origin": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "too_large": 413,
    "too_many_images": 413,
    "unsupported_media_type": 415,
    "wrong_host": 421,
    "invalid_query": 422,
    "evidence_unavailable": 422,
    "busy": 429,
    "internal": 500,
    "not_ready": 503,
    "timeout": 503,
}
"""Code of an error that concerns a whole request -> its HTTP status."""

INTERNAL = "an error inside the server; the log says where"  # message of the code "internal"

IMAGE_CODES = {
    "unreadable": "empty, truncated, damaged, or not an image of a known format",
    "too_large": "more bytes or pixels than the limits allow, or more memory than decoding may take",
    "decoder_timeout": "decoding took longer than it may",
    "decoder_crashed": "the decoder crashed while it read the image",
    "internal": "an error inside the server",
}
"""Code of an error that concerns one image of a request -> what it means."""


class Problem(Exception):
    """A request is refused.

    Attributes:
        code: a key of `STATUS`.
        message: one line that names the thing and the cure.
        retry_after: seconds after which to try again; None: trying again does not help.
    """

    def __init__(self, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after
        self.status = STATUS[code]

    @property
    def headers(self) -> dict[str, str]:
        """Header fields that belong to the answer."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.code == "unauthorized":
            headers["WWW-Authenticate"] = "Bearer"
        return headers


class ImageProblem(Exception):
    """One image cannot be scored; the others of its request can.

    Attributes:
        code: a key of `IMAGE_CODES`.
        message: one line.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message
