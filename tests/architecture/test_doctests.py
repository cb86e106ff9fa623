"""The examples in docstrings give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
    for folder, packages in {".": ("service", "model_training"), "library": ("calibrant",)}.items()
    for package in packages
    for path in sorted((ROOT / folder / package).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    """Every `>>>` line of a module prints what follows it."""
    failed, tried = doctest.testmod(import_module(name))
    assert tried > 0
    assert failed == 0
