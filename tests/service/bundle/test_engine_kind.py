from typing import get_args

from service.bundle.engine_kind import AUTO, ENGINE_KINDS, REFERENCE
from service.settings import Settings


def test_the_setting_accepts_every_engine_kind() -> None:
    """`CALIBRANT_ENGINE` accepts auto and the name of each engine kind."""
    assert set(get_args(Settings.model_fields["engine"].annotation)) == {AUTO, *ENGINE_KINDS}


def test_the_reference_is_the_last_resort() -> None:
    """Engine kinds are listed fastest first, so torch in float32 comes last."""
    assert list(ENGINE_KINDS.values())[-1] == REFERENCE
    assert REFERENCE.name == "torch-fp32"
