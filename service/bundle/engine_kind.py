"""The ways in which a network can be run: by which engine, at which precision."""

from typing import Final, NamedTuple

from service.bundle.card import Engine, Precision


class EngineKind(NamedTuple):
    """An engine and the precision of its arithmetic."""

    engine: Engine
    precision: Precision

    @property
    def name(self) -> str:
        """As the setting `CALIBRANT_ENGINE` has it, e.g. torch-fp32."""
        return f"{self.engine}-{self.precision}"


REFERENCE: Final = EngineKind("torch", "fp32")
"""The one that every machine has, and every other is compared with."""

ENGINE_KINDS: Final = {
    engine_kind.name: engine_kind
    for engine_kind in (
        EngineKind("openvino", "bf16"),
        EngineKind("torch", "bf16"),
        EngineKind("openvino", "fp32"),
        REFERENCE,
    )
}
"""All by name, the fastest first: docs/results/speed.md."""

AUTO: Final = "auto"
"""Instead of a name: the fastest that the machine has and the card covers."""
