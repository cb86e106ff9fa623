"""The ways in which a network can be run: by which engine, at which precision."""

from typing import Final, NamedTuple

from service.bundle.card import Engine, Precision


class Kind(NamedTuple):
    """An engine and the precision of its arithmetic."""

    engine: Engine
    precision: Precision

    @property
    def name(self) -> str:
        """As the setting `CALIBRANT_ENGINE` has it, e.g. torch-fp32."""
        return f"{self.engine}-{self.precision}"


REFERENCE: Final = Kind("torch", "fp32")
"""The one that every machine has, and every other is compared with."""

KINDS: Final = {
    kind.name: kind for kind in (Kind("openvino", "bf16"), Kind("torch", "bf16"), Kind("openvino", "fp32"), REFERENCE)
}
"""All by name, the fastest first: docs/results/speed.md."""

AUTO: Final = "auto"
"""Instead of a name: the fastest that the machine has and the card covers."""
