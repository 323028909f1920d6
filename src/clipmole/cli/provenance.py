"""`clipmole provenance`: what the metadata of a file say, what is searched for, and the list of signers to trust."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmole.cli.options import INPUTS, Commands, CommandsOrInputs, OwnCommand, TrustAnchors, app, remark
from clipmole.cli.render import provenance_lines
from clipmole.plumbing.text import escaped, printable

provenance_app = typer.Typer(cls=CommandsOrInputs, help="Print what the metadata of a file say of where it comes from.")
trust_list_app = typer.Typer(cls=Commands, help="The certificates of signers to trust.", no_args_is_help=True)
provenance_app.add_typer(trust_list_app, name="trust-list")
app.add_typer(provenance_app, name="provenance")


@provenance_app.command(INPUTS, cls=OwnCommand)
def provenance(
    file: Annotated[str | None, typer.Argument(help="The image.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also print all metadata, as they are in the file; they may hold anything.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    trust_anchors: TrustAnchors = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="Print what generators leave in metadata and what it means, rule by rule.")
    ] = False,
) -> None:
    """Print what the metadata of a file say of where it comes from; no detector looks at it.

    `clipmole provenance trust-list get` gets the list of signers to trust.
    """
    if rules == (file is not None):
        raise typer.BadParameter("give a file, or --rules")
    if rules:
        from clipmole.provenance.rules import rule_lines

        for line in rule_lines():
            typer.echo(line)
        return

    from clipmole.provenance import read_everything
    from clipmole.provenance.trust_list import chosen_trust_list

    found, texts = read_everything(str(file), trust_list=chosen_trust_list(trust_anchors))
    if json:
        from json import dumps

        held = {"metadata": [text._asdict() for text in texts]} if everything else {}
        typer.echo(dumps(found.model_dump(mode="json") | held))
        return
    for line in provenance_lines(found):
        typer.echo(printable(line))
    for text in texts if everything else ():
        typer.echo(escaped(f"{text.key}: {text.value}"))
    remark(found.caution)


@trust_list_app.command("get")
def get(
    url: Annotated[
        str | None, typer.Option(help="Where to get it. Default: C2PA's published list of certificate authorities.")
    ] = None,
) -> None:
    """Get a list of certificates and keep it in the cache, with its date and sha256, for all that reads metadata.

    No other command fetches a list, and a list is never updated automatically.
    """
    from clipmole.provenance.trust_list import URL, get_trust_list

    found = get_trust_list(url or URL)
    remark(f"{found.n_certificates} certificates")
    typer.echo(str(found))
