"""The command line: the flags that all commands share, and the entry point. ``exits.Exit`` lists the exit codes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import change, look, ops
from controlplane.cli.exits import UsageError
from controlplane.cli.settings import resolve

app = typer.Typer(
    name="eepctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="See and change the membership of one elastic expert-parallel instance.\n\n"
    "Exit codes: 0 done · 1 refused · 2 wrong usage · 3 unreachable · 4 denied · 5 the operation failed · "
    "6 waited too long · 7 doctor found something.",
)


@app.callback()
def connect(
    context: typer.Context,
    *,
    endpoint: Annotated[list[str] | None, typer.Option("--endpoint", "-e", help="A replica's address; repeat.")] = None,
    token: Annotated[str, typer.Option(help="Bearer token; better in a file.")] = "",
    token_file: Annotated[str, typer.Option(help="File with the token.")] = "",
    ca_file: Annotated[str, typer.Option(help="Authority of the replicas' certificates (PEM).")] = "",
    certificate_file: Annotated[str, typer.Option(help="Client certificate (PEM), for mutual TLS.")] = "",
    key_file: Annotated[str, typer.Option(help="Its private key.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 0.0,
    config: Annotated[Path | None, typer.Option(help="TOML file; default ~/.config/eep/eepctl.toml.")] = None,
) -> None:
    """Every flag may also stand in the environment (EEP_ENDPOINTS, EEP_TOKEN, EEP_TOKEN_FILE …) or in the file."""
    flags = {
        "endpoints": endpoint,
        "token": token,
        "token_file": token_file,
        "ca_file": ca_file,
        "certificate_file": certificate_file,
        "key_file": key_file,
        "timeout_s": timeout,
        "config": str(config or ""),
    }
    try:
        context.obj = resolve(flags, os.environ)
    except UsageError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.code) from error


look.register(app)
change.register(app)
app.add_typer(ops.operations, name="ops")


def main() -> None:
    """Entry point of ``eepctl``."""
    app()
