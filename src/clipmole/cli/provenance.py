"""`clipmole provenance`: what the metadata of a file say, what is searched for, and the list of signers to trust."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmole.cli.options import Commands, app, remark
from clipmole.cli.render import provenance_lines
from clipmole.plumbing.text import escaped, printable


class _FileOrCommand(Commands):
    """What is no command's name is a file: `provenance FILE` is `provenance show FILE`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, "--rules", "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


provenance_app = typer.Typer(
    cls=_FileOrCommand,
    help="Print what the metadata of a file say (`clipmole provenance FILE --all`) and what is searched for; get the "
    "list of signers to trust.",
    no_args_is_help=True,
    invoke_without_command=True,
)
trust_list_app = typer.Typer(cls=Commands, help="The certificates of signers to trust.", no_args_is_help=True)
provenance_app.add_typer(trust_list_app, name="trust-list")
app.add_typer(provenance_app, name="provenance")


@provenance_app.callback()
def provenance(
    rules: Annotated[
        bool, typer.Option("--rules", help="Print what generators leave in metadata and what it means, rule by rule.")
    ] = False,
) -> None:
    """Print what the metadata of a file say and what is searched for; get the list of signers to trust."""
    if rules:
        from clipmole.provenance.rules import rule_lines

        for line in rule_lines():
            typer.echo(line)


@provenance_app.command("show")
def show(
    file: Annotated[str, typer.Argument(help="The image.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also print all metadata, as they stand in the file; they may hold anything.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what the metadata of one file say of where it comes from; no detector looks at it."""
    from clipmole.provenance import read_everything
    from clipmole.provenance.trust_list import kept_trust_list

    provenance, texts = read_everything(file, trust_list=kept_trust_list())
    if json:
        from json import dumps

        held = {"metadata": [text._asdict() for text in texts]} if everything else {}
        typer.echo(dumps(provenance.model_dump(mode="json") | held))
        return
    for line in provenance_lines(provenance):
        typer.echo(printable(line))
    for text in texts if everything else ():
        typer.echo(escaped(f"{text.key}: {text.value}"))
    remark(provenance.caution)


@trust_list_app.command("get")
def get(
    url: Annotated[
        str | None, typer.Option(help="Where to get it. Default: C2PA's published list of signers' authorities.")
    ] = None,
) -> None:
    """Get a list of certificates and keep it in the cache, with its date and sha256, for `detect --provenance`.

    It is the only command that fetches one: nothing else does, and none is fetched again by itself.
    """
    from clipmole.provenance.trust_list import URL, get_trust_list

    found = get_trust_list(url or URL)
    remark(f"{found.n_certificates} certificates")
    typer.echo(str(found))
