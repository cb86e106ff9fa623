"""The engines that can run a network, each at a precision."""

from typing import Final, NamedTuple

from service.bundle.card import Engine, Precision


class EngineKind(NamedTuple):
    """An engine and the precision of its arithmetic."""

    engine: Engine
    precision: Precision

    @property
    def name(self) -> str:
        """Name in the setting `CALIBRANT_ENGINE`, e.g. torch-fp32."""
        return f"{self.engine}-{self.precision}"


REFERENCE: Final = EngineKind("torch", "fp32")
"""The engine that every machine has and that every other one is compared with."""

ENGINE_KINDS: Final = {
    engine_kind.name: engine_kind
    for engine_kind in (
        EngineKind("openvino", "bf16"),
        EngineKind("torch", "bf16"),
        EngineKind("torch", "fp16"),
        EngineKind("openvino", "fp32"),
        REFERENCE,
    )
}
"""All engine kinds by name, fastest first (docs/results/speed.md)."""

AUTO: Final = "auto"
"""Value of `CALIBRANT_ENGINE` that selects the fastest engine that the machine has and the card covers."""
