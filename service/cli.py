"""The command `calibrant`. Heavy libraries are imported inside the commands, so that --help answers at once."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service import __version__
from service.errors import CalibrantError, ServerUnreachable

LOOPBACK = ("127.0.0.1", "::1", "localhost")

EXIT_ERROR, EXIT_UNREACHABLE, EXIT_INPUT = 1, 3, 6
"""Internal or configuration error; no server or one that is not ready; the scan or the request is at fault."""

app = typer.Typer(
    help="3-D medical image segmentation that says how far it can be trusted. For research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _training in entry_points(group="calibrant.commands"):
    app.registered_commands.extend(_training.load().registered_commands)


def main() -> None:
    """Run the command line; an error of ours is one sentence and an exit code, never a traceback."""
    try:
        app()
    except CalibrantError as error:
        _fail(error)


def _fail(error: CalibrantError) -> NoReturn:
    typer.echo(f"{error.title}: {error.detail}", err=True)
    input_at_fault = 400 <= error.status < 500  # noqa: PLR2004 - HTTP's range of the client's errors
    code = EXIT_UNREACHABLE if isinstance(error, ServerUnreachable) else EXIT_INPUT if input_at_fault else EXIT_ERROR
    sys.exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calibrant {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A reverse proxy authenticates every request: allow other addresses.")
    ] = False,
) -> None:
    """Serve the installed models over HTTP until interrupted. Settings: CALIBRANT_* environment variables."""
    from service.server import run_server
    from service.settings import Settings

    run_server(Settings.read(behind_proxy=behind_proxy), host, port)


keys = typer.Typer(help="API keys of the service. They lie, as hashes, in the file that CALIBRANT_KEYS_FILE names.")
app.add_typer(keys, name="keys")

KeysFile = Annotated[Path, typer.Option("--file", envvar="CALIBRANT_KEYS_FILE", help="The file of keys.")]


@keys.command("add")
def add_key(
    owner: Annotated[str, typer.Argument(help="Whose key: nobody else sees what is sent with it.")],
    file: KeysFile,
    admin: Annotated[bool, typer.Option("--admin", help="May also load and unload models.")] = False,
) -> None:
    """Make a key and show it, this once."""
    from service.storage.keys import add_key as make

    typer.echo(make(file, owner, admin=admin))


@keys.command("list")
def list_keys(file: KeysFile) -> None:
    """Show the id, owner and date of each key."""
    from service.storage.keys import read_keys

    for key in read_keys(file):
        typer.echo(f"{key.id}  {key.owner:24} {key.created}{'  admin' if key.admin else ''}")


@keys.command("remove")
def remove_key(
    identifier: Annotated[str, typer.Argument(help="Id of the key, as list shows it.")], file: KeysFile
) -> None:
    """Remove a key; a running service refuses it from then on."""
    from service.storage.keys import remove_key as remove

    if not remove(file, identifier):
        typer.echo(f"There is no key {identifier}. calibrant keys list shows those that there are.", err=True)
        raise typer.Exit(EXIT_INPUT)


@app.command()
def predict(
    scan: Annotated[Path, typer.Argument(help="The scan, .nii or .nii.gz.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for mask, confidence and summary.")],
    model: Annotated[str | None, typer.Option(help="Name of the model; the service's default if left out.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A running service, e.g. http://127.0.0.1:8000; without it, here.")
    ] = None,
) -> None:
    """Segment one scan and write mask, confidence map and calibration summary."""
    from service.predict import predict_here, predict_there

    files = predict_there(scan, out, model, url) if url else predict_here(scan, out, model)
    typer.echo(files.report())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the demo's results and pictures.")] = Path(
        "demo-out"
    ),
) -> None:
    """Segment both hippocampi of a template brain through the real HTTP path and draw mask and confidence."""
    from service.demo import run_demo

    run_demo(out)
