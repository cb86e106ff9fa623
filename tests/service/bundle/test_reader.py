import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.bundle.manifest import verify_manifest
from service.bundle.network import build_network
from service.bundle.reader import load_bundle
from service.bundle.schema import Network, ServiceConfig
from service.errors import BundleIntegrity, BundleInvalid, BundleUnsupported

CPU = torch.device("cpu")
WEIGHTS = Path("models/model.safetensors")

Reseal = Callable[[Path], str]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Path, str]]:
        return Path.write_text, (self.path, "boom")


def test_a_bundle_is_loaded_ready_to_serve(tiny_bundle: Path, tiny_config: ServiceConfig) -> None:
    """The network has the weights of the file and is in evaluation mode; the identity is the manifest's."""
    bundle = load_bundle(tiny_bundle, CPU)

    expected = build_network(tiny_config.network).eval()
    expected.load_state_dict(load_file(tiny_bundle / WEIGHTS))
    image = torch.linspace(-1, 1, 8**3).view(1, 1, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(bundle.network(image), expected(image))
    assert not any(module.training for module in bundle.network.modules())
    assert bundle.description.sha256 == verify_manifest(tiny_bundle)
    assert bundle.device == CPU


def test_changed_weights_are_refused(tiny_bundle: Path) -> None:
    """One flipped bit of the weights is detected."""
    content = bytearray((tiny_bundle / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tiny_bundle / WEIGHTS).write_bytes(content)

    with pytest.raises(BundleIntegrity, match=r"first models/model\.safetensors"):
        load_bundle(tiny_bundle, CPU)


def test_weights_of_another_network_are_refused(tiny_bundle: Path, reseal: Reseal) -> None:
    """Weights of the same layers with other widths do not fit."""
    wider = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 16], "strides": [2]}
    save_file(build_network(Network(name="UNet", arguments=wider)).state_dict(), tiny_bundle / WEIGHTS)
    reseal(tiny_bundle)

    with pytest.raises(BundleInvalid, match="does not fit the network"):
        load_bundle(tiny_bundle, CPU)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_are_complete_and_nothing_more(tiny_bundle: Path, reseal: Reseal, change: str) -> None:
    """A missing tensor and an extra tensor are both refused."""
    weights = load_file(tiny_bundle / WEIGHTS)
    if change == "missing":
        weights.popitem()
    else:
        weights["extra.weight"] = torch.zeros(1)
    save_file(weights, tiny_bundle / WEIGHTS)
    reseal(tiny_bundle)

    with pytest.raises(BundleInvalid, match="does not fit the network"):
        load_bundle(tiny_bundle, CPU)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-10], id="cut short"),
        pytest.param(lambda content: content[:0], id="empty"),
        pytest.param(lambda content: b"\xff" * 8 + content[8:], id="an absurd header length"),
        pytest.param(lambda content: content[:8] + b"!" + content[9:], id="a header that is no JSON"),
    ],
)
def test_damaged_weights_are_refused(tiny_bundle: Path, reseal: Reseal, damage: Callable[[bytes], bytes]) -> None:
    """Damaged weights with a valid hash are refused, too."""
    (tiny_bundle / WEIGHTS).write_bytes(damage((tiny_bundle / WEIGHTS).read_bytes()))
    reseal(tiny_bundle)

    with pytest.raises(BundleInvalid, match="no file of safetensors"):
        load_bundle(tiny_bundle, CPU)


def test_a_network_off_the_list_is_refused(tiny_bundle: Path, reseal: Reseal) -> None:
    """A bundle cannot bring code, so an unknown network is refused."""
    declaration = tiny_bundle / "service.json"
    declaration.write_text(declaration.read_text().replace('"UNet"', '"MyNet"'))
    reseal(tiny_bundle)

    with pytest.raises(BundleUnsupported, match="'MyNet'"):
        load_bundle(tiny_bundle, CPU)


def test_a_pickle_in_place_of_the_weights_is_not_run(tiny_bundle: Path, tmp_path: Path, reseal: Reseal) -> None:
    """A pickle under the name of the weights is refused without being executed, bare or in PyTorch's own archive."""
    for write in (lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save):
        write(Bomb(tmp_path / "boom"), tiny_bundle / WEIGHTS)
        reseal(tiny_bundle)

        with pytest.raises(BundleInvalid, match="no file of safetensors"):
            load_bundle(tiny_bundle, CPU)

    assert not (tmp_path / "boom").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))  # noqa: S301 - the bomb is real
    assert (tmp_path / "boom").exists()


def test_a_valid_bundle_is_loaded_without_pickle(
    tiny_bundle: Path, reseal: Reseal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither pickle nor torch.load is called, not even for a checkpoint that lies beside the weights."""
    torch.save({}, tiny_bundle / "models" / "model.pt")
    reseal(tiny_bundle)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a pickle was read")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)

    assert load_bundle(tiny_bundle, CPU).description.config.name == "tiny"
