from service.bundle.trust import Trust, unproved


def test_by_default_nothing_is_demanded() -> None:
    """No pin, no key, and nothing is loaded before it is used."""
    trust = Trust()

    assert (dict(trust.pins), trust.keys, trust.proof([])) == ({}, (), {})
    assert trust.proof is unproved
