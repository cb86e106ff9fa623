"""Configuration of all PACS, their addresses and credentials: read from one TOML file, never from a request."""

import os
import ssl
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PositiveFloat, PositiveInt, ValidationError, model_validator

from service.bundle.registry import DEFAULT_MODEL
from service.errors import PacsNotFound, SettingsError
from service.pacs.selection import Selection
from service.schemas import DEFAULT_OBJECTS, Accept, DicomObject, StatementStatus
from service.storage.keys import LOCAL, OwnerName

AeTitle = Annotated[str, Field(pattern=r"^[ -\[\]-~]{1,16}$")]
"""Application entity title: at most 16 characters, no backslash (PS3.5 6.2, VR AE)."""

Port = Annotated[int, Field(ge=1, le=65535)]

WITHDRAWN_OBJECTS: Final[tuple[DicomObject, ...]] = ("sr", "sc", "pdf")
"""What a PACS gets of a withdrawn result by default: what says so in words, and no segmentation that may be taken for good."""

PacsName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Secret(_Table):
    """Where to read a password or token: a file of its own, or an environment variable."""

    file: Path | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _reject_none_or_both(self) -> Self:
        if (self.file is None) == (self.env is None):
            msg = "expected either file or env"
            raise ValueError(msg)
        return self

    def read(self) -> str:
        """Return the secret without surrounding white space.

        Raises:
            SettingsError: the file cannot be read, or the variable is not set.
        """
        if self.env is not None:
            secret = os.environ.get(self.env, "").strip()
            if not secret:
                msg = f"The variable {self.env}, which the PACS file names as a secret, is not set."
                raise SettingsError(msg)
            return secret
        path = self.file or Path()
        try:
            return path.read_text().strip()
        except OSError as error:
            msg = f"The file of a secret that the PACS file names, {path}, cannot be read ({error.strerror})."
            raise SettingsError(msg) from error


class Tls(_Table):
    """Trusted certificates and this service's own certificate for encrypted connections."""

    ca_file: Path | None = None
    """Trusted certificates; the system's by default."""
    certificate_file: Path | None = None
    """This service's own certificate (mutual TLS), with its key in `key_file`."""
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the SSL context of a client.

        Raises:
            SettingsError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except OSError as error:  # also the base class of ssl.SSLError
            raise SettingsError(_NO_CERTIFICATE) from error
        return context


class ServerTls(_Table):
    """The certificate of a server, and the clients that it accepts."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    """If set, clients must have a certificate issued by one of these."""

    def context(self) -> ssl.SSLContext:
        """Return the SSL context of a server.

        Raises:
            SettingsError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.client_ca_file)
            context.load_cert_chain(self.certificate_file, self.key_file)
        except OSError as error:
            raise SettingsError(_NO_CERTIFICATE) from error
        if self.client_ca_file is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class Dimse(_Table):
    """A PACS without DICOMweb: C-FIND, C-MOVE and C-STORE (PS3.7)."""

    host: str
    port: Port
    aet: AeTitle
    """AE title of the PACS."""
    our_aet: AeTitle = "CALIBRANT"
    """AE title of this service; the PACS must know it, with the address of this machine and `move_port`."""
    move_port: Port = 11113
    """Port on which the images of a C-MOVE are received while it runs."""
    move_host: str = "0.0.0.0"  # noqa: S104 - the PACS is another machine
    """Address of this machine on which they are received."""
    tls: Tls | None = None


class Pacs(_Table):
    """One PACS: a DICOMweb address (`url`), or DIMSE."""

    url: HttpUrl | None = None
    """Root of QIDO-RS, WADO-RS and STOW-RS, e.g. http://127.0.0.1:8042/dicom-web."""
    dimse: Dimse | None = None
    orthanc: HttpUrl | None = None
    """Root of Orthanc's own REST interface, if its change log is to be followed."""
    user: str | None = None
    password: Secret | None = None
    token: Secret | None = None
    """Sent as Authorization: Bearer."""
    tls: Tls = Tls()
    timeout_s: PositiveFloat = 30
    """Seconds without data after which the PACS counts as unreachable."""
    deadline_s: PositiveFloat = 600
    """Seconds that one request may take altogether."""
    poll_s: PositiveFloat = 2
    """Seconds between two polls of Orthanc's change log."""
    withdrawn: list[DicomObject] = list(WITHDRAWN_OBJECTS)
    """Objects that are stored here of a result whose statement is withdrawn, of those that were asked for; if none of them
    was, the report. Without any in this list nothing is stored."""
    refused: bool = False
    """Whether a short report that says why is stored here if a scan is refused."""

    def wanted(self, objects: Sequence[DicomObject], status: StatementStatus | None) -> list[DicomObject]:
        """Return which objects of a result are stored here.

        Args:
            objects: that were asked for.
            status: of the result's statement; None if that is not known.
        """
        if status != "withdrawn":
            return list(objects)
        return [kind for kind in objects if kind in self.withdrawn] or (["sr"] if "sr" in self.withdrawn else [])

    @model_validator(mode="after")
    def _reject_half(self) -> Self:
        if (self.url is None) == (self.dimse is None):
            msg = "expected either url (DICOMweb) or dimse"
            raise ValueError(msg)
        if (self.user is None) != (self.password is None) or (self.user and self.token):
            msg = "expected user and password, or token, or none of them"
            raise ValueError(msg)
        return self


class Rule(_Table):
    """Selects arriving series that are segmented automatically."""

    pacs: PacsName
    select: Selection = Selection()
    model: str = DEFAULT_MODEL
    objects: list[DicomObject] = list(DEFAULT_OBJECTS)
    destination: PacsName | None = None
    """PACS that results are sent to; `pacs` itself by default."""
    owner: OwnerName = LOCAL
    """Owner of the jobs."""
    accept: Accept = "stated"
    """`anyway`: also series that say that the model is not made for them; their results are withdrawn."""


class Webhook(_Table):
    """Lets Orthanc's scripts announce stable series at /v1/hooks/orthanc."""

    pacs: PacsName
    secret: Secret


class Receiver(_Table):
    """`calibrant receive`: this service's own C-STORE SCP."""

    host: str = "127.0.0.1"
    port: Port = 11112
    aet: AeTitle = "CALIBRANT"
    allowed: list[AeTitle] = Field(min_length=1)
    """AE titles of accepted senders."""
    tls: ServerTls | None = None
    idle_s: PositiveFloat = 10
    """Seconds without a new image after which a series without gaps counts as complete."""
    patience_s: PositiveFloat = 120
    """Seconds without a new image after which any series is processed; one with gaps is then refused."""
    least_free_bytes: PositiveInt = 1 << 30
    """Free disk space below which images are refused (0xA700)."""
    most_associations: PositiveInt = 10
    """Connections that one sender, by its address, may have at once; all together may have eight times as many."""


class PacsFile(_Table):
    """The whole file."""

    pacs: dict[PacsName, Pacs] = {}
    rule: list[Rule] = []
    webhook: Webhook | None = None
    receiver: Receiver | None = None

    @model_validator(mode="after")
    def _reject_unknown_names(self) -> Self:
        used = {name for rule in self.rule for name in (rule.pacs, rule.destination) if name}
        used |= {self.webhook.pacs} if self.webhook else set()
        if unknown := used - set(self.pacs) - ({RECEIVED} if self.receiver else set()):
            msg = f"{', '.join(sorted(unknown))}: no [pacs.NAME] of that name"
            raise ValueError(msg)
        if any(RECEIVED in (rule.pacs, rule.destination) and not rule.destination for rule in self.rule):
            msg = f"a rule for {RECEIVED} needs a destination"
            raise ValueError(msg)
        return self

    def find(self, name: str) -> Pacs:
        """Return a PACS.

        Raises:
            PacsNotFound: none of this name.
        """
        if name not in self.pacs:
            msg = f"No PACS of this name is configured; there are {len(self.pacs)}: {', '.join(self.pacs) or 'none'}."
            raise PacsNotFound(msg)
        return self.pacs[name]


_NO_CERTIFICATE: Final = (
    "The certificates that the PACS file names cannot be used. Check whether the files exist and are PEM."
)

RECEIVED: Literal["received"] = "received"
"""Name in rules for the series received by `calibrant receive`."""


def read_pacs_file(path: Path | None) -> PacsFile:
    """Return the configuration of a file; without a file, one without any PACS.

    Raises:
        SettingsError: the file cannot be read or breaks its schema. The message repeats no values: they may be secret.
    """
    if path is None:
        return PacsFile()
    try:
        return PacsFile.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        msg = f"The PACS file, {path}, cannot be read ({error.strerror})."
        raise SettingsError(msg) from error
    except tomllib.TOMLDecodeError as error:
        msg = f"The PACS file, {path}, is not TOML. See docs/pacs.md."
        raise SettingsError(msg) from error
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        msg = f"The PACS file, {path}, cannot be used: {reasons}. See docs/pacs.md."
        raise SettingsError(msg) from error
