"""The tests tree mirrors the packages, so that the test of a module is found without a search."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    path.relative_to(ROOT)
    for package in ("service", "model_training")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_its_test_file(module: Path) -> None:
    """Every module has a mirrored test file."""
    assert (ROOT / "tests" / module.parent / f"test_{module.stem.strip('_')}.py").is_file()


def test_every_test_file_has_its_module() -> None:
    """Every test file below a package's mirror belongs to an existing module."""
    tests = [
        path for package in ("service", "model_training") for path in (ROOT / "tests" / package).rglob("test_*.py")
    ]
    stems = {(m.parent, f"{m.stem.strip('_')}.py") for m in MODULES}
    orphans = [
        path
        for path in tests
        if (path.parent.relative_to(ROOT / "tests"), path.name.removeprefix("test_")) not in stems
    ]
    assert orphans == []
