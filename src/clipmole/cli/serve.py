"""`clipmole serve`: a page and an HTTP API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from clipmole.cli.options import (
    DAY,
    BackboneName,
    BatchSize,
    DetectorName,
    DeviceName,
    PrecisionOption,
    RuntimeOption,
    TrustAnchors,
    app,
    detector_loader,
    remark,
)
from clipmole.errors import ConfigError, MissingDependency
from clipmole.serve import TOKEN_VARIABLE

TOKEN_CHARACTERS = 16  # fewer can be guessed
MOST_TOKEN_BYTES = 4096
MIB = 2**20


@app.command()
def serve(
    detector: DetectorName = "default",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 means all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    backbone: BackboneName = None,
    batch_size: BatchSize = None,
    device: DeviceName = "cpu",
    precision: PrecisionOption = None,
    runtime: RuntimeOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes. Default: one per core, 2 to 4.")
    ] = None,
    max_image_mib: Annotated[int, typer.Option(min=1, help="Largest image file, MiB.")] = 40,
    max_request_mib: Annotated[int, typer.Option(min=1, help="Largest request, MiB.")] = 128,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Largest image, millions of pixels.")] = 64,
    max_images: Annotated[int, typer.Option(min=1, help="Images in one request, at most.")] = 32,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests at one time, at most; further ones are told to try again later.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Images that wait, at most; further ones are told to try again later.")
    ] = 128,
    shutdown_seconds: Annotated[
        float, typer.Option(min=1, max=DAY, help="Seconds to finish accepted requests after a stop signal.")
    ] = 60,
    token_file: Annotated[
        Path | None, typer.Option(help=f"A file with the token that clients must send. Or ${TOKEN_VARIABLE}.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name that clients use for this server; several may be given. Default on loopback: localhost."
        ),
    ] = None,
    trust_anchors: TrustAnchors = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser as soon as the server is ready.")
    ] = False,
) -> None:
    """Serve a page on which to drop images, and an HTTP API that takes images and returns JSON."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependency(error.name or "fastapi", "serve") from error

    from clipmole.provenance.trust_list import chosen_trust_list
    from clipmole.serve.settings import ServeSettings

    given = {
        "max_image_bytes": max_image_mib * MIB,
        "max_request_bytes": max(max_request_mib, max_image_mib) * MIB,
        "max_pixels": max_megapixels * 1_000_000,
        "max_images": max_images,
        "max_requests": max_requests,
        "max_queue": max(max_queue, max_images),
        "shutdown_seconds": shutdown_seconds,
        "allowed_hosts": tuple(allowed_host or ()),
    }
    if workers is not None:
        given["workers"] = workers
    settings = ServeSettings.parse(given, "options")
    token = read_token(token_file)
    trust_list = chosen_trust_list(trust_anchors)

    from clipmole.serve.middleware import is_loopback
    from clipmole.serve.server import log_to_stderr
    from clipmole.serve.server import serve as run

    if token is None and not is_loopback(host):
        remark(f"anybody who can reach {host} may use this server; --token-file restricts it")
    log_to_stderr()
    run(
        detector_loader(detector, backbone, device, precision, batch_size, runtime),
        settings,
        host=host,
        port=port,
        token=token,
        trust_list=trust_list,
        say=remark,
        ready=_open_page if open_page else lambda _address: None,
    )


def _open_page(address: str) -> None:
    """Open the page in a thread, because a browser in the terminal returns only when it is closed."""
    import threading
    import webbrowser

    def show() -> None:
        if not webbrowser.open(address):
            remark(f"no browser could be started; open {address}")

    threading.Thread(target=show, daemon=True).start()


def read_token(file: Path | None) -> str | None:
    """The token in the file, or in the environment; None if there is none. Raises `ConfigError` for a bad one."""
    if file is None:
        token, where = os.environ.get(TOKEN_VARIABLE), f"${TOKEN_VARIABLE}"
        if token is None:
            return None
    else:
        where = str(file)
        try:
            with file.open("rb") as opened:  # which may be a pipe
                token = opened.read(MOST_TOKEN_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {getattr(error, 'strerror', 'not text')}") from error
    token = token.strip()
    if len(token) < TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: a token has at least {TOKEN_CHARACTERS} ASCII characters and no spaces")
    return token
