"""Image, compose file and code agree with one another. No container is started."""

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
    """Return the arguments of every use of an instruction."""
    return re.findall(rf"^{instruction} +(.+)$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privileges(name: str) -> None:
    """Containers have no capabilities and cannot gain privileges, and only the proxy publishes ports."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert ("ports" in service) == ("outside" in service["networks"]) == (name == "proxy")


def test_the_inner_network_leads_nowhere() -> None:
    """The network of service, database and PACS has no way out."""
    assert yaml.safe_load(COMPOSE)["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize("name", ["calibrant", "proxy", "database"])
def test_a_root_is_read_only(name: str) -> None:
    """These services write only to volumes and /tmp."""
    assert SERVICES[name]["read_only"] is True


def test_environment_variables_are_settings() -> None:
    """Every variable that the compose file gives to the service is one of its settings."""
    assert set(SERVICES["calibrant"]["environment"]) <= SETTINGS


def test_every_variable_of_the_compose_file_is_documented() -> None:
    """Every variable of the compose file is a setting of the service or is named in docs/container.md."""
    documented = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "container.md").read_text()))
    assert set(re.findall(r"\$\{(\w+)", COMPOSE)) <= SETTINGS | documented


def test_the_image_is_not_run_by_root() -> None:
    """The user is a number, so that an orchestrator can check it without looking into the image."""
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    uid, gid = arguments("USER", last_stage)[-1].split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_the_python_of_the_image_is_the_oldest_that_the_project_takes() -> None:
    """The image has the Python version for which the constraints were resolved."""
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:([\d.]+)-", DOCKERFILE, re.MULTILINE)
    assert PROJECT["project"]["requires-python"] == f">={image}"


def test_every_package_is_in_the_image() -> None:
    """Every package of the wheel is copied into the build and let through by .dockerignore."""
    copied = {word for line in arguments("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    assert copied <= {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split()}


def test_fresh_volumes_belong_to_the_user_of_the_image() -> None:
    """The image's user owns every mount point, because a new volume gets the owner of the folder it covers."""
    (made,) = re.findall(r"install -d -o calibrant -g calibrant -m 0700 ([^&\n]+)", DOCKERFILE)
    mounted = {volume.split(":")[1] for volume in SERVICES["calibrant"]["volumes"]}
    assert mounted == set(shlex.split(made))
