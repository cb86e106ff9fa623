"""The command `calibrant`. Heavy libraries are imported inside the commands, so that --help is fast."""

import logging
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from service import __version__
from service.errors import CalibrantError, DeviceUnavailable, ServerProblem, ServerUnreachable
from service.schemas import Accept

EXIT_ERROR, EXIT_UNREACHABLE, EXIT_INPUT, EXIT_WITHDRAWN = 1, 3, 6, 10
"""Internal or configuration error; the service or device that is needed is not there; invalid scan or request; with
--strict, a result whose statement is withdrawn."""

AcceptOption = Annotated[
    Accept,
    typer.Option(
        help="`anyway`: also scans that say that the model is not made for them; their results are withdrawn."
    ),
]

NOT_READY = (429, 502, 503, 504)
"""HTTP statuses of a server, or of a proxy in front of it, that is still busy or starting after the client's retries."""

app = typer.Typer(
    help="3-D medical image segmentation that says how far it can be trusted. For research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _training in entry_points(group="calibrant.commands"):
    app.registered_commands.extend(_training.load().registered_commands)


def main() -> None:
    """Run the command line; a CalibrantError becomes one sentence and an exit code, never a traceback."""
    try:
        app()
    except CalibrantError as error:
        _fail(error)


def _fail(error: CalibrantError) -> NoReturn:
    typer.echo(f"{error.title}: {error.detail}", err=True)
    input_at_fault = 400 <= error.status < 500  # noqa: PLR2004 - HTTP's range of the client's errors
    gone = isinstance(error, ServerUnreachable | DeviceUnavailable) or (
        isinstance(error, ServerProblem) and error.status in NOT_READY
    )
    sys.exit(EXIT_UNREACHABLE if gone else EXIT_INPUT if input_at_fault else EXIT_ERROR)


def _show_version(is_given: bool) -> None:
    if is_given:
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
    from service.commands.serve import run_server
    from service.settings import Settings

    run_server(Settings.read(behind_proxy=behind_proxy), host, port)


keys = typer.Typer(help="API keys of the service. Their hashes are in the file that CALIBRANT_KEYS_FILE names.")
app.add_typer(keys, name="keys")

KeysFile = Annotated[Path, typer.Option("--file", envvar="CALIBRANT_KEYS_FILE", help="The file of keys.")]


@keys.command("add")
def add_key(
    owner: Annotated[str, typer.Argument(help="Owner of the key; other owners do not see what is sent with it.")],
    file: KeysFile,
    admin: Annotated[bool, typer.Option("--admin", help="May also load and unload models.")] = False,
    scope: Annotated[
        Literal["submit", "read"] | None,
        typer.Option(help="Only send scans and cancel jobs, or only see jobs and results; by default both."),
    ] = None,
) -> None:
    """Make a key and show it; it cannot be shown again."""
    from service.storage.keys import EVERYTHING
    from service.storage.keys import add_key as make

    typer.echo(make(file, owner, admin=admin, scopes=frozenset({scope}) if scope else EVERYTHING))


@keys.command("list")
def list_keys(file: KeysFile) -> None:
    """Show the id, owner, date and scope of each key, if it may not do everything."""
    from service.storage.keys import EVERYTHING, read_keys

    for key in read_keys(file):
        scope = "admin" if key.admin else "" if key.scopes == EVERYTHING else f"{', '.join(sorted(key.scopes))} only"
        typer.echo(f"{key.id}  {key.owner:24} {key.created}  {scope}".rstrip())


@keys.command("remove")
def remove_key(
    identifier: Annotated[str, typer.Argument(help="Id of the key, as list shows it.")], file: KeysFile
) -> None:
    """Remove a key; a running service refuses it from then on."""
    from service.storage.keys import remove_key as remove

    if not remove(file, identifier):
        typer.echo(f"There is no key {identifier}. calibrant keys list shows all keys.", err=True)
        raise typer.Exit(EXIT_INPUT)


@app.command()
def predict(  # noqa: PLR0913, PLR0917 - options of a command line
    scan: Annotated[
        Path,
        typer.Argument(
            help="The scan: NIfTI, NRRD, MHA, MGZ, a multi-frame DICOM file, or a folder or zip of a DICOM series.",
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for mask, confidence and summary.")],
    model: Annotated[str | None, typer.Option(help="Name of the model; the default model if left out.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A running service, e.g. http://127.0.0.1:8000; by default, this machine computes."),
    ] = None,
    accept: AcceptOption = "stated",
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 10 if the statement is withdrawn.")] = False,
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID of the series to take from a folder or zip of several.")
    ] = None,
) -> None:
    """Segment one scan and write mask, confidence map and calibration summary."""
    from service.commands.predict import predict_here, predict_there
    from service.commands.series import one_file

    with one_file(scan, series) as file:
        files = predict_there(file, out, model, url, accept) if url else predict_here(file, out, model, accept)
    typer.echo(files.report())
    if strict and files.withdrawn:
        raise typer.Exit(EXIT_WITHDRAWN)


@app.command()
def batch(  # noqa: PLR0913, PLR0917 - options of a command line
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of scans or DICOM files, BIDS data set, or CSV file with columns id, path.", exists=True
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, maps, summaries, tables and logs.")],
    url: Annotated[str, typer.Option(help="The running service that computes.")] = "http://127.0.0.1:8000",
    local: Annotated[bool, typer.Option("--local", help="Compute on this machine, without a service.")] = False,
    model: Annotated[str | None, typer.Option(help="Name of the model; the default model if left out.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Scans in flight at the service.")] = 4,
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n parts, e.g. of a SLURM array.")] = "1/1",
    pattern: Annotated[str, typer.Option(help="Only files whose names match, e.g. '*_T1w.nii.gz'.")] = "*",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the cases and the files that are left out.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also repeat cases that failed because of their scan.")
    ] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write the tables as Parquet.")] = False,
    accept: AcceptOption = "stated",
) -> None:
    """Segment many scans into one folder with one table; run it again to go on where it stopped.

    Exit code: 0 all succeeded, 1 configuration or internal error, 2 wrong command line, 3 no service or device, 4 some failed, 5 all
    failed, 6 no case found, 130 interrupted.
    """
    from rich.console import Console

    from service.commands.batch.command import BatchRequest, run_command
    from service.commands.batch.journal import Shard
    from service.observability.log import configure_logging

    configure_logging(logging.WARNING)
    try:
        part = Shard.parse(shard)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shard") from error
    where = None if local else url
    request = BatchRequest(source, out, where, model, jobs, part, pattern, dry_run, retry_failed, parquet, accept)
    # Without a terminal, rich would break lines after 80 columns.
    raise typer.Exit(run_command(request, Console(width=None if sys.stdout.isatty() else 160)))


audit = typer.Typer(help="Who did what to which job, in the state directory that CALIBRANT_STATE_DIR names.")
app.add_typer(audit, name="audit")


@audit.command(name="list")
def list_audit(
    job: Annotated[str | None, typer.Option(help="Only what concerns the job with this id.")] = None,
) -> None:
    """Show the audit log, a JSON object per line, the oldest first."""
    from service.commands.audit import show_audit
    from service.settings import Settings

    show_audit(Settings.read().state_dir, job)


@audit.command(name="verify")
def verify_audit(
    noted: Annotated[
        str | None, typer.Option(help="NUMBER:HASH that an earlier check showed; it must still be there.")
    ] = None,
) -> None:
    """Check that no line of the audit log was changed, taken out or put in."""
    from service.commands.audit import check_audit
    from service.settings import Settings

    typer.echo(check_audit(Settings.read().state_dir, noted))


pacs = typer.Typer(help="The PACS that series come from and results go to, as listed in the file CALIBRANT_PACS_FILE.")
app.add_typer(pacs, name="pacs")

PacsPath = Annotated[Path, typer.Option("--file", envvar="CALIBRANT_PACS_FILE", help="The TOML file of the PACS.")]


@pacs.command("test")
def test_pacs(name: Annotated[str, typer.Argument(help="Name of the PACS in the file.")], file: PacsPath) -> None:
    """Test whether a PACS answers, and can be queried, read and written; nothing is stored. Exit code 1 if a test fails."""
    from service.pacs.check import examine_pacs
    from service.pacs.config import read_pacs_file

    checks = examine_pacs(read_pacs_file(file).find(name))
    for check in checks:
        typer.echo(f"{'ok' if check.ok else 'fail':4}  {check.name:16}  {check.found}")
    if not all(check.ok for check in checks):
        raise typer.Exit(EXIT_ERROR)


@app.command()
def receive(file: PacsPath) -> None:
    """Receive series by C-STORE until interrupted, for a `calibrant serve` with the same state directory."""
    from service.errors import SettingsError
    from service.observability.log import configure_logging
    from service.pacs.config import read_pacs_file
    from service.pacs.receiver import run_receiver
    from service.settings import Settings
    from service.storage.private import keep_private

    receiver = read_pacs_file(file).receiver
    if receiver is None:
        msg = "The PACS file has no [receiver]. See docs/pacs.md."
        raise SettingsError(msg)
    configure_logging()
    keep_private(Settings.read().state_dir / "received")
    typer.echo(f"Calibrant receives as {receiver.aet} at {receiver.host}:{receiver.port} until Ctrl-C.")
    run_receiver(receiver, Settings.read().state_dir / "received")


@app.command()
def mercure(
    inbox: Annotated[
        Path, typer.Option("--in", envvar="MERCURE_IN_DIR", help="Folder of images and task.json.", exists=True)
    ],
    outbox: Annotated[
        Path, typer.Option("--out", envvar="MERCURE_OUT_DIR", help="Folder for DICOM objects.", exists=True)
    ],
) -> None:
    """Run as a processing module of mercure: segment the series of a folder into DICOM objects and result.json."""
    from service.commands.mercure import run_module

    report = run_module(inbox, outbox)
    typer.echo(report.document()["__mercure_notification"]["text"])


@app.command()
def models(
    url: Annotated[str | None, typer.Option(help="A running service; by default, this machine.")] = None,
) -> None:
    """Show the installed models: whether they can be served, and their DSC and ACE with 95 % intervals."""
    from rich.console import Console

    from service.commands.models import models_here, models_there, table_of

    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table_of(models_there(url) if url else models_here()))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, e.g. for an issue.")] = False,
) -> None:
    """Check everything that serving needs, and say what to do where something is missing. Exit code 1 if anything is missing."""
    from service.commands.doctor import examine, report
    from service.observability.log import configure_logging

    configure_logging(logging.CRITICAL)  # what is wrong is a finding
    findings = examine()
    typer.echo(report(findings, as_json=as_json))
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(EXIT_ERROR)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the demo's results and pictures.")] = Path(
        "demo-out"
    ),
) -> None:
    """Segment both hippocampi of a template brain through the real HTTP path and draw mask and confidence."""
    from service.commands.demo import run_demo

    run_demo(out)
