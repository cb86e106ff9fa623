"""The door of the library: what `import calibrant` offers, and that it works beside a folder called `service`."""

import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import calibrant
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_training.losses.ace import BINS as LOSS_BINS
from service import __version__
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


def wheel_of(source: Path, folder: Path) -> Path:
    """Return the folder of an unpacked wheel."""
    build = [
        sys.executable,
        "-c",
        "import sys; from hatchling.builders.wheel import WheelBuilder as W; print(*W(sys.argv[1]).build(directory=sys.argv[2]))",
    ]
    made = subprocess.run([*build, str(source), str(folder / "wheels")], capture_output=True, text=True, check=True)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", made.stdout.strip(), str(folder / "unpacked")], check=True)
    return folder / "unpacked"


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


def test_the_version_is_that_of_the_service() -> None:
    """`calibrant.__version__` is what `calibrant --version` prints."""
    assert calibrant.__version__ == __version__


OFFERED = {"_version", "calibration", "client", "errors", "losses", "metrics", "names", "schemas"}
INSIDE = sorted(
    {path.stem for folder in ("service", "model_training") for path in (ROOT / folder).iterdir()}
    - OFFERED
    - {"__init__", "__main__", "__pycache__"}
)


@given(st.one_of(st.sampled_from(INSIDE), st.from_regex(r"[a-z]{12}_[a-z]{3}", fullmatch=True)))
def test_other_modules_are_not_part_of_the_library(name: str) -> None:
    """A module of the service or the trainer that the library does not offer is none of `calibrant`, nor is any other."""
    with pytest.raises(
        ModuleNotFoundError, match=rf"^calibrant\.{name} is not part of the library; see docs/library\.md$"
    ):
        import_module(f"calibrant.{name}")


def test_pydoc_lists_what_is_offered() -> None:
    """Tools that look into the package's folder find the offered modules only."""
    assert {module.name for module in pkgutil.iter_modules(calibrant.__path__)} == OFFERED | {"__main__"}


def test_its_errors_can_be_pickled(crowded: Path) -> None:
    """An error of the client passes from one process to another under its public name."""
    script = (
        "import pickle, sys; from calibrant import ServerUnreachable\n"
        "sys.stdout.write(pickle.dumps(ServerUnreachable('nobody')).hex())"
    )
    dumped = run(script, crowded)
    script = f"import pickle; print(repr(pickle.loads(bytes.fromhex({dumped!r}))))"
    assert run(script, crowded) == "ServerUnreachable('nobody')"


def test_python_m_runs_the_command(crowded: Path) -> None:
    """`python -m calibrant` is `calibrant`, also beside the user's own `service`."""
    done = subprocess.run(
        [sys.executable, "-m", "calibrant", "--version"], cwd=crowded, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"calibrant {__version__}"), done.stderr


@pytest.mark.slow
def test_a_users_file_is_type_checked(crowded: Path) -> None:
    """Mypy finds the types of the library from outside the repository: it passes ordinary use and reports mistakes."""
    (crowded / "good.py").write_text(
        "import torch\n"
        "from calibrant import AsyncClient, Client, ServerProblem, metrics\n"
        "from calibrant.errors import InvalidProbabilities\n"
        "from calibrant.losses import ACEDiceCELoss, SoftL1ACELoss\n"
        "loss: torch.nn.Module = SoftL1ACELoss(softmax=True, to_onehot_y=True, reduction='mean')\n"
        "both = ACEDiceCELoss('soft', ace_weight=1.0)\n"
        "try:\n"
        "    first = float(metrics.ace([[0.5], [0.5]], [0])[0])\n"
        "    name: str = Client('http://127.0.0.1:8000').models().models[0].name\n"
        "except (InvalidProbabilities, ServerProblem) as error:\n"
        "    detail: str = error.detail\n"
    )
    bad = {
        "from calibrant.losses import SoftL1ACELoss; SoftL1ACELoss(reduction='x')": "arg-type",
        "from calibrant import Client; Client(8000)": "arg-type",
        "from calibrant import Client; Client('http://host').segmnt": "attr-defined",
        "from calibrant import metrics; metrics.ace([[0.5]], [0], bins='x')": "arg-type",
        "import calibrant.app": "import-not-found",
    }
    (crowded / "bad.py").write_text("\n".join(bad) + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(crowded / "cache"), "good.py", "bad.py"],
        cwd=crowded,
        env=environment | {"MYPYPATH": str(ROOT / "library")},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert [line.partition(": error: ")[0] for line in errors] == [f"bad.py:{n + 1}" for n in range(len(bad))], (
        checked.stdout + checked.stderr
    )
    for line, code in zip(errors, bad.values(), strict=True):
        assert line.endswith(f"[{code}]")


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


def test_the_wheel_holds_what_is_linked(tmp_path: Path) -> None:
    """In the wheel each link of the library is a copy of the file that it points to."""
    unpacked = wheel_of(ROOT, tmp_path) / "calibrant"
    for name in OFFERED:
        here = ROOT / "library" / "calibrant"
        for path in [here / f"{name}.py"] if (here / f"{name}.py").exists() else sorted((here / name).glob("*.py")):
            copy = unpacked / path.relative_to(here)
            assert copy.is_file()
            assert not copy.is_symlink()
            assert copy.read_bytes() == path.read_bytes()
    assert (unpacked / "py.typed").is_file()
    script = (
        f"import sys; sys.path.insert(0, {str(unpacked.parent)!r}); import calibrant, calibrant.losses; calibrant.Client\n"
        "print(calibrant.__file__, [n for n in ('service', 'model_training') if n in sys.modules])"
    )
    assert run(script, tmp_path) == f"{unpacked / '__init__.py'} []"


def test_losses_and_card_bin_alike() -> None:
    """The losses repeat the number of bins because they import nothing outside their folder."""
    assert LOSS_BINS == BINS


def test_the_losses_can_be_had_alone(tmp_path: Path) -> None:
    """The wheel `calibrant-losses` computes what `calibrant` does, needs no service, and carries its licence."""
    unpacked = wheel_of(ROOT / "library" / "calibrant-losses", tmp_path)
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
