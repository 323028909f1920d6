"""`clipmole provenance`: what metadata are searched for, and the list of signers to trust."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmole.cli.options import Commands, app, remark

provenance_app = typer.Typer(
    cls=Commands,
    help="Print what metadata are searched for, and get the list of signers to trust.",
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
    """Print what metadata are searched for, and get the list of signers to trust."""
    if rules:
        from clipmole.provenance.rules import rule_lines

        for line in rule_lines():
            typer.echo(line)


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
