"""The door of the library: what `import calibrant` offers, and that it works beside a folder called `service`."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import calibrant
import numpy as np
import pytest

from model_training.losses.ace import BINS as LOSS_BINS
from service.calibration.histogram import BINS

ROOT = Path(__file__).parents[2]

NAMES = [
    "AsyncClient",
    "CalibrantError",
    "Client",
    "ClientError",
    "InvalidProbabilities",
    "Order",
    "Result",
    "ServerProblem",
    "ServerUnreachable",
    "errors",
    "losses",
    "metrics",
]


def run(script: str, folder: Path) -> str:
    """Run a script in a folder, as a user's own file there, and return what it prints."""
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, path.name], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(name="crowded")
def crowded_(tmp_path: Path) -> Path:
    """Return a folder in which every name that Calibrant uses for its own packages is taken by the user."""
    for name in ("service", "model_training", "client", "errors", "calibration", "losses", "metrics"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    return tmp_path


def test_these_names_are_exported() -> None:
    """The list is a promise: within a minor version no name leaves it."""
    assert calibrant.__all__ == NAMES == sorted(NAMES)
    assert dir(calibrant) == NAMES
    for name in NAMES:
        assert getattr(calibrant, name) is not None


def test_another_name_is_an_attribute_error() -> None:
    """A typing mistake is told as Python tells it."""
    with pytest.raises(AttributeError, match=r"calibrant.*Clinet"):
        _ = calibrant.Clinet


def test_modules_export_what_they_document() -> None:
    """`losses` and `metrics` have sorted lists of names that exist."""
    for name in ("losses", "metrics"):
        module = import_module(f"calibrant.{name}")
        assert module.__all__ == sorted(module.__all__)
        assert all(hasattr(module, each) for each in module.__all__)


def test_importing_it_loads_nothing_heavy(tmp_path: Path) -> None:
    """Each library is loaded with the first name that needs it."""
    heavy = "[name for name in ('httpx', 'numpy', 'torch', 'monai', 'pydantic') if name in sys.modules]"
    script = (
        f"import sys, calibrant; print({heavy}); calibrant.errors; print({heavy})\n"
        f"calibrant.metrics; print({heavy}); calibrant.Client; print({heavy})"
    )
    assert run(script, tmp_path).splitlines() == ["[]", "[]", "['numpy']", "['httpx', 'numpy', 'pydantic']"]


@pytest.mark.parametrize("name", NAMES)
def test_it_works_beside_folders_of_the_same_names(name: str, crowded: Path) -> None:
    """`import service` finds the user's package, and nothing of ours is called `service` in that process."""
    script = (
        f"import sys, calibrant; calibrant.{name}; assert 'service' not in sys.modules\n"
        "import service, model_training; print(service.MINE, model_training.MINE)"
    )
    assert run(script, crowded) == "service model_training"


def test_an_error_of_the_client_is_the_error_of_the_library(crowded: Path) -> None:
    """What the client raises is caught by the name that `calibrant` exports."""
    script = (
        "import calibrant\n"
        "try: calibrant.Client('http://127.0.0.1:9', patience_s=0).models()\n"
        "except calibrant.ServerUnreachable as error: print(type(error).__module__)"
    )
    assert run(script, crowded) == "calibrant.errors"


def test_losses_and_card_bin_alike() -> None:
    """The losses repeat the number of bins because they import nothing outside their folder."""
    assert LOSS_BINS == BINS


def test_the_losses_can_be_had_alone(tmp_path: Path) -> None:
    """The wheel `calibrant-losses` computes what `calibrant` does, needs no service, and carries its licence."""
    wheels = tmp_path / "wheels"
    source = ROOT / "library" / "calibrant-losses"
    build = [
        sys.executable,
        "-c",
        "import sys; from hatchling.builders.wheel import WheelBuilder as W; print(*W(sys.argv[1]).build(directory=sys.argv[2]))",
    ]
    made = subprocess.run([*build, str(source), str(wheels)], capture_output=True, text=True, check=True)
    unpacked = tmp_path / "unpacked"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", made.stdout.strip(), str(unpacked)], check=True)
    probs = np.random.default_rng(3).dirichlet([1, 1], 500).T.astype(np.float32)
    np.save(tmp_path / "probs.npy", probs)
    script = (
        f"import sys; sys.path[:] = [{str(unpacked)!r}, *[p for p in sys.path if p not in {[str(ROOT), str(ROOT / 'library')]}]]\n"
        "import numpy as np, torch\n"
        "from calibrant_losses.losses import HardL1ACELoss\n"
        "from calibrant_losses.metrics import ace\n"
        f"p = np.load({str(tmp_path / 'probs.npy')!r}); y = np.arange(500) % 2\n"
        "loss = HardL1ACELoss()(torch.tensor(p)[None], torch.eye(2)[torch.tensor(y)].T[None])\n"
        "print(abs(float(loss) - ace(p, y).mean()) < 1e-6, [n for n in ('service', 'model_training', 'dbos') if n in sys.modules])"
    )
    assert run(script, tmp_path) == "True []"
    assert (unpacked / "calibrant_losses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
