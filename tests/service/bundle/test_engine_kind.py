from typing import get_args

from service.bundle.engine_kind import AUTO, ENGINE_KINDS, REFERENCE
from service.settings import Settings


def test_the_setting_knows_every_kind() -> None:
    """What `CALIBRANT_ENGINE` accepts is auto and the name of each kind."""
    assert set(get_args(Settings.model_fields["engine"].annotation)) == {AUTO, *ENGINE_KINDS}


def test_the_reference_is_the_last_resort() -> None:
    """Kinds are listed with the fastest first, so that torch in float32 comes last."""
    assert list(ENGINE_KINDS.values())[-1] == REFERENCE
    assert REFERENCE.name == "torch-fp32"
