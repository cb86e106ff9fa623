"""`calibrant doctor`: checks everything that serving needs, and says what to do where something is missing."""

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import nibabel as nib
import numpy as np
from pydantic import BaseModel, TypeAdapter

from service import __version__
from service.commands.predict import registry
from service.engines.devices import Device, devices_of
from service.errors import CalibrantError
from service.executors.embedded import START_DEADLINE_S, EmbeddedExecutor
from service.executors.memory import machine_memory_bytes
from service.settings import Settings
from service.storage.keys import read_keys

LIBRARIES: Final = ("torch", "monai", "numpy", "nibabel", "pydicom", "dbos", "fastapi")

LEAST_FREE_BYTES: Final = 10 << 30
"""Free space in the state directory below which there is a warning: some dozen large scans with their results."""

LEAST_MEMORY_BYTES: Final = 4 << 30

PORT: Final = 8000

NETWORK_FILESYSTEMS: Final = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "beegfs",
    "ceph",
    "9p",
    "fuse.sshfs",
    "glusterfs",
)
"""File systems on which SQLite's locks and flushes are not reliable."""

Verdict = Literal["ok", "warn", "fail"]


class Finding(BaseModel):
    """Outcome of one check."""

    check: str
    verdict: Verdict
    found: str
    do: str = ""
    """What to do, if something is wrong."""


Check = Callable[[], Iterator[Finding]]


def examine() -> list[Finding]:
    """Return the findings of all checks."""
    try:
        settings = Settings.read()
    except CalibrantError as error:
        return [*_versions(), Finding(check="settings", verdict="fail", found=error.detail, do="See docs/settings.md.")]
    checks: list[Check] = [
        _versions,
        lambda: _device(settings),
        _machine,
        lambda: _state_directory(settings.state_dir),
        _bundles,
        lambda: _keys(settings.keys_file),
        _sandbox,
        lambda: _port(PORT),
    ]
    return [finding for check in checks for finding in check()]


def report(findings: list[Finding], *, as_json: bool = False) -> str:
    """Return the findings as text, with a second line for what to do, or as JSON."""
    if as_json:
        return TypeAdapter(list[Finding]).dump_json(findings, indent=2).decode()
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:4}  {finding.check:15}  {finding.found}")
        if finding.do:
            lines.append(f"{'':23}{finding.do}")
    return "\n".join(lines)


def _versions() -> Iterator[Finding]:
    system = f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding(check="calibrant", verdict="ok", found=f"{__version__}; {system}")
    versions, missing = [], []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        do = "Install Calibrant again: pip install calibrant"
        yield Finding(check="libraries", verdict="fail", found=f"missing: {', '.join(missing)}", do=do)
    else:
        yield Finding(check="libraries", verdict="ok", found=", ".join(versions))


def _device(settings: Settings) -> Iterator[Finding]:
    import torch

    try:
        devices = tuple(dict.fromkeys(devices_of(settings.device)))
    except CalibrantError as error:
        yield Finding(check="device", verdict="fail", found=f"{settings.device} names no device", do=error.detail)
        return
    yield from map(_judged, devices)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if gpus and all(device.is_cpu for device in devices):
        found = f"unused: {', '.join(gpus)}"
        yield Finding(check="device", verdict="warn", found=found, do="CALIBRANT_DEVICE=auto would use every GPU.")


def _judged(device: Device) -> Finding:
    """Let a process of its own compute on the device, as the service does."""
    executor = EmbeddedExecutor(device=device, deadline_s=START_DEADLINE_S)
    executor.start()
    executor.judged.wait()
    executor.stop()
    if executor.why_not is None:
        return Finding(check="device", verdict="ok", found=f"{device.name}: {executor.description}")
    return Finding(check="device", verdict="fail", found=f"{device.name} does not compute", do=executor.why_not)


def _machine() -> Iterator[Finding]:
    memory = machine_memory_bytes()
    found = f"{len(os.sched_getaffinity(0))} cores, {_gib(memory)} of memory"
    if memory < LEAST_MEMORY_BYTES:
        yield Finding(check="machine", verdict="warn", found=found, do="Large scans need more: 4 GiB at least.")
    else:
        yield Finding(check="machine", verdict="ok", found=found)


def _state_directory(folder: Path) -> Iterator[Finding]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror})"
        do = "Set CALIBRANT_STATE_DIR to a folder that this user may write."
        yield Finding(check="state directory", verdict="fail", found=found, do=do)
        return
    free, filesystem = shutil.disk_usage(folder).free, filesystem_of(folder)
    found = f"{folder}: {_gib(free)} free on {filesystem or 'an unknown file system'}"
    if filesystem in NETWORK_FILESYSTEMS:
        do = "Set CALIBRANT_STATE_DIR to a local disk: the job database is not safe on a network share."
        yield Finding(check="state directory", verdict="fail", found=found, do=do)
    elif free < LEAST_FREE_BYTES:
        do = "Free some space, or set CALIBRANT_RETENTION_DAYS so that old jobs are erased."
        yield Finding(check="state directory", verdict="warn", found=found, do=do)
    else:
        yield Finding(check="state directory", verdict="ok", found=found)


def filesystem_of(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that holds a folder; empty if the system does not say.

    Args:
        folder: an existing folder.
        mounts: Linux's list of the mounted file systems.
    """
    if not mounts.is_file():
        return ""
    resolved = folder.resolve()
    types = {}
    for line in mounts.read_text().splitlines():
        _, point, filesystem, *_ = line.split(" ")
        types[Path(point.replace("\\040", " "))] = filesystem
    return next((types[parent] for parent in (resolved, *resolved.parents) if parent in types), "")


def _bundles() -> Iterator[Finding]:
    try:
        bundles = registry()
    except CalibrantError as error:
        yield Finding(check="models", verdict="fail", found=error.title, do=error.detail)
        return
    for description in bundles.ready.values():
        yield Finding(check="model", verdict="ok", found=f"{description.identity}, verified")
    for name, why in bundles.broken.items():
        yield Finding(check="model", verdict="warn", found=f"{name} cannot be served", do=why)
    if not bundles.ready:
        yield Finding(check="models", verdict="fail", found="no model can be served", do="Install Calibrant again.")


def _keys(path: Path | None) -> Iterator[Finding]:
    if path is None:
        yield Finding(check="keys", verdict="ok", found="none: the service listens on this machine only")
        return
    try:
        keys = read_keys(path)
    except CalibrantError as error:
        yield Finding(check="keys", verdict="fail", found=f"{path} cannot be used", do=error.detail)
        return
    if not keys:
        yield Finding(
            check="keys", verdict="fail", found=f"{path} holds no key", do="calibrant keys add OWNER makes one."
        )
    elif path.stat().st_mode & 0o077:
        found = f"{path} can be read by other users of this machine"
        yield Finding(check="keys", verdict="warn", found=found, do=f"chmod 600 {path}")
    else:
        yield Finding(check="keys", verdict="ok", found=f"{path}: {len(keys)} keys")


def _sandbox() -> Iterator[Finding]:
    from service.intake.landlock import landlock_version
    from service.intake.sandbox import decode_sandboxed

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.nii"
        array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        try:
            same = np.array_equal(decode_sandboxed(path).array_CDHW[0], array)
        except CalibrantError as error:
            yield Finding(check="sandbox", verdict="fail", found="a tiny scan was not decoded", do=error.detail)
            return
    if not same:
        do = "Install Calibrant again; if that does not help, tell the maintainers."
        yield Finding(check="sandbox", verdict="fail", found="a tiny scan was decoded wrongly", do=do)
    elif landlock_version() == 0:
        do = (
            "Linux 5.13 or later would also keep the decoder away from other files; its limits of memory and time work."
        )
        yield Finding(check="sandbox", verdict="warn", found="works, without Landlock", do=do)
    else:
        yield Finding(
            check="sandbox", verdict="ok", found=f"decodes a tiny scan; Landlock version {landlock_version()}"
        )


def _port(port: int) -> Iterator[Finding]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            do = "Take another one: calibrant serve --port 8001."
            yield Finding(check="port", verdict="warn", found=f"{port} is taken, perhaps by a running service", do=do)
            return
    yield Finding(check="port", verdict="ok", found=f"{port} is free")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
