"""`clipmole push` and `import-univfd`: upload an adapter directory, and make one from UnivFD's published head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmole.cli.options import app


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="An adapter directory.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option(help="Create the repository as private.")] = False,
) -> None:
    """Upload an adapter directory to the Hugging Face Hub."""
    from clipmole.models.adapter import push_adapter

    typer.echo(push_adapter(directory, repo_id, private))


@app.command()
def import_univfd(
    head: Annotated[Path, typer.Argument(help="fc_weights.pth of WisconsinAIVision/UniversalFakeDetect.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    backbone: Annotated[str, typer.Option(help="Where CLIP ViT-L/14 comes from.")] = "vit-l-14",
) -> None:
    """Turn UnivFD's published linear head into an adapter directory for CLIP ViT-L/14."""
    from clipmole.models.univfd import import_univfd as convert

    convert(head, out, backbone)
    typer.echo(str(out))
