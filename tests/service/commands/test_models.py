import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from service.bundle.registry import DEFAULT_MODEL
from service.commands.models import Installed, models_here, models_there, table_of


def drawn(models: list[Installed]) -> str:
    """Return the table as text."""
    file = io.StringIO()
    Console(file=file, width=250).print(table_of(models))
    return file.getvalue()


def test_the_bundles_of_this_machine(
    tiny_bundle: Path, reseal: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shipped bundles and those of CALIBRANT_BUNDLE_DIR are listed, a broken one with the reason."""
    monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tiny_bundle.parent))
    (tiny_bundle.parent / "empty").mkdir()
    by_name = {model.name: model for model in models_here()}

    assert set(by_name) == {DEFAULT_MODEL, "tiny", "empty"}
    assert by_name["tiny"].identity == f"tiny@{reseal(tiny_bundle)}"
    assert by_name["tiny"].statement is not None
    assert by_name["empty"].why_not.startswith("No readable MANIFEST.json")


def test_a_service_says_the_same_of_a_bundle(server_url: str) -> None:
    """A bundle has the same row whether it is read here or listed by a service."""
    (here,) = (model for model in models_here() if model.name == DEFAULT_MODEL)

    assert here in models_there(server_url)
    assert any(model.why_not and not model.identity for model in models_there(server_url))


def test_the_table_shows_figures_with_their_intervals() -> None:
    """The row of the shipped model has the card's DSC, ACE and number of persons; a broken one has none."""
    (shipped,) = (model for model in models_here() if model.name == DEFAULT_MODEL)
    assert shipped.statement is not None
    assert shipped.statement.figures is not None
    dsc = shipped.statement.figures["dsc"]
    text = drawn([shipped, Installed("broken", "", "", "No manifest.", None)])

    assert shipped.identity in text
    assert f"{dsc.value:.3f} ({dsc.low:.3f}-{dsc.high:.3f})" in text
    assert f"{shipped.statement.n_cases} cases of {shipped.statement.n_persons} persons" in text
    assert text.splitlines()[4].split("│")[3].strip() == "No manifest."
    assert text.splitlines()[4].split("│")[4].strip() == "-"
