"""What the image and the compose file promise agrees with the code and with each other. No container is started."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
SETTINGS = {f"CALIBRANT_{name.upper()}" for name in Settings.model_fields}


def arguments(instruction: str, dockerfile: str = DOCKERFILE) -> list[str]:
    """Return what stands behind an instruction, each time that it is used."""
    return re.findall(rf"^{instruction} +(.+)$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privileges(name: str) -> None:
    """A container that was taken over can gain nothing, and only the proxy is seen from outside."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert ("ports" in service) == ("outside" in service["networks"]) == (name == "proxy")


def test_the_inner_network_leads_nowhere() -> None:
    """The service, its database and the PACS reach no other machine."""
    assert yaml.safe_load(COMPOSE)["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize("name", ["calibrant", "proxy", "database"])
def test_a_root_is_read_only(name: str) -> None:
    """These write into volumes and /tmp only."""
    assert SERVICES[name]["read_only"] is True


def test_what_the_service_is_told_are_settings() -> None:
    """A variable that the service does not read would be ignored without a word."""
    assert set(SERVICES["calibrant"]["environment"]) <= SETTINGS


def test_every_variable_of_the_compose_file_is_documented() -> None:
    """A user chooses settings of the service, and what docs/container.md names."""
    documented = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "container.md").read_text()))
    assert set(re.findall(r"\$\{(\w+)", COMPOSE)) <= SETTINGS | documented


def test_the_image_is_not_run_by_root() -> None:
    """A number, so that an orchestrator can check it without looking into the image."""
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    uid, gid = arguments("USER", last_stage)[-1].split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_the_python_of_the_image_is_the_oldest_that_the_project_takes() -> None:
    """Constraints were resolved for it."""
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:([\d.]+)-", DOCKERFILE, re.MULTILINE)
    assert PROJECT["project"]["requires-python"] == f">={image}"


def test_every_package_is_in_the_image() -> None:
    """A package that is added to the wheel reaches the build, past .dockerignore, too."""
    copied = {word for line in arguments("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    assert copied <= {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split()}


def test_fresh_volumes_belong_to_the_user_of_the_image() -> None:
    """Docker gives a new volume the owner of the folder that it covers; one that is not there is root's."""
    (made,) = re.findall(r"install -d -o calibrant -g calibrant -m 0700 ([^&\n]+)", DOCKERFILE)
    mounted = {volume.split(":")[1] for volume in SERVICES["calibrant"]["volumes"]}
    assert mounted == set(shlex.split(made))
