import base64
import hmac
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from fastapi import FastAPI
from joserfc import jwk, jwt

from service.api import oidc
from service.api.oidc import TokenVerifier
from service.errors import ServiceBusy, Unauthorized

Ask = Callable[..., httpx.Response]

ISSUER = "https://login.hospital.example/realms/imaging"
OWN = jwk.RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"}, private=True)
NEXT = jwk.ECKey.generate_key("P-256", {"kid": "two"}, private=True)
FOREIGN = jwk.RSAKey.generate_key(2048, {"kid": "one"}, private=True)


class Provider:
    """An identity provider, and how often it was asked for its keys."""

    def __init__(self) -> None:
        self.keys: list[Any] = [OWN.as_dict(private=False)]
        self.issuer, self.jwks = ISSUER, f"{ISSUER}/keys"
        self.asked = 0
        self.down = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer as a provider does."""
        if self.down:
            raise httpx.ConnectError("gone")  # noqa: EM101 - as httpx says it
        if request.url.path.endswith("/.well-known/openid-configuration"):
            return httpx.Response(200, json={"issuer": self.issuer, "jwks_uri": self.jwks})
        self.asked += 1
        return httpx.Response(200, json={"keys": self.keys})

    def verifier(self) -> TokenVerifier:
        """Return a verifier that asks this provider."""
        return TokenVerifier(ISSUER, "calibrant", httpx.MockTransport(self))


@pytest.fixture(name="provider")
def provider_() -> Provider:
    """Return a provider that publishes one key."""
    return Provider()


def claims(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - claims of several types
    """Return the claims of a valid token; None leaves one out."""
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": "calibrant", "sub": "jane", "exp": now + 60, "iat": now, "scope": "calibrant:read"}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def token(key: Any = OWN, header: dict[str, Any] | None = None, **changes: Any) -> str:  # noqa: ANN401 - as above
    """Return a signed token."""
    algorithm = "ES256" if isinstance(key, jwk.ECKey) else "RS256"
    return jwt.encode({"alg": algorithm, "kid": key.kid, **(header or {})}, claims(**changes), key)


def forged(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """Return a token with any header, signed by a function."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims())]
    signed = b".".join(parts)
    return (signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")).decode()


def unsigned(_: bytes) -> bytes:
    """Return no signature."""
    return b""


def by_secret(secret: bytes) -> Callable[[bytes], bytes]:
    """Return the function that signs with HMAC-SHA256."""
    return lambda signed: hmac.digest(secret, signed, "sha256")


def by_own_key(signed: bytes) -> bytes:
    """Return the provider's RS256 signature."""
    assert OWN.private_key is not None
    return OWN.private_key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize(
    ("granted", "scopes", "admin"),
    [
        ({"scope": "openid calibrant:read"}, {"read"}, False),
        ({"scope": "calibrant:submit calibrant:read"}, {"read", "submit"}, False),
        ({"scope": None, "roles": ["calibrant:submit", 7]}, {"submit"}, False),
        ({"scope": "calibrant:admin"}, {"read", "submit"}, True),
        ({"scope": "read submit admin"}, set(), False),
        ({"scope": 7, "roles": "calibrant:admin"}, set(), False),
    ],
)
def test_a_token_names_its_owner_and_scopes(
    provider: Provider,
    granted: dict[str, Any],
    scopes: set[str],
    admin: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    """The owner's name follows from issuer and subject; only our own scopes count."""
    verifier = provider.verifier()
    owner = verifier.owner_of(token(**granted))

    assert (set(owner.scopes), owner.admin) == (scopes, admin)
    assert owner.name.startswith("oidc-")
    assert "jane" not in owner.name
    assert verifier.owner_of(token()).name == owner.name != verifier.owner_of(token(sub="joe")).name
    assert provider.asked == 1


SECRETS = (OWN.as_pem(private=False), OWN.as_der(private=False), json.dumps(OWN.as_dict(private=False)).encode(), b"")

HOSTILE: dict[str, Callable[[], str]] = {
    "alg none": lambda: forged({"alg": "none"}, unsigned),
    "alg None": lambda: forged({"alg": "None", "kid": "one"}, unsigned),
    "no alg": lambda: forged({"kid": "one"}, unsigned),
    **{
        f"public key {n} as secret": partial(forged, {"alg": "HS256", "kid": "one"}, by_secret(SECRETS[n]))
        for n in range(4)
    },
    "public key as secret of RS256": lambda: forged({"alg": "RS256", "kid": "one"}, by_secret(SECRETS[0])),
    "signature left out": lambda: token().rpartition(".")[0] + ".",
    "signature of another": lambda: token().rpartition(".")[0] + "." + token(sub="joe").rpartition(".")[2],
    "signed by another key of the same id": lambda: token(FOREIGN),
    "key in the header": lambda: token(FOREIGN, {"jwk": FOREIGN.as_dict(private=False)}),
    "address of keys in the header": lambda: token(FOREIGN, {"jku": "https://evil.example/keys"}),
    "id of no key": lambda: token(OWN, {"kid": "three"}),
    "id that is a path": lambda: token(OWN, {"kid": "../../../dev/null"}),
    "id that is a query": lambda: token(OWN, {"kid": "one' UNION SELECT 'x"}),
    "unknown critical header": lambda: forged(
        {"alg": "RS256", "kid": "one", "crit": ["b64x"], "b64x": True}, by_own_key
    ),
    "another audience": lambda: token(aud="billing"),
    "no audience": lambda: token(aud=None),
    "another issuer": lambda: token(iss="https://evil.example"),
    "nearly the issuer": lambda: token(iss=ISSUER + "/"),
    "no issuer": lambda: token(iss=None),
    "expired": lambda: token(exp=int(time.time()) - 31),
    "for ever": lambda: token(exp=None),
    "not yet": lambda: token(nbf=int(time.time()) + 3600),
    "no subject": lambda: token(sub=None),
    "an empty subject": lambda: token(sub=""),
    "a subject that is a list": lambda: token(sub=["jane"]),
    "too long": lambda: token(padding="x" * 20_000),
    "nonsense": lambda: "a.b.c",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_token_that_is_not_valid_is_refused(provider: Provider, name: str) -> None:
    """Confused algorithms, injected keys, wrong claims and times get one message, which does not say what was wrong."""
    verifier = provider.verifier()
    assert verifier.owner_of(forged({"alg": "RS256", "kid": "one"}, by_own_key)).scopes == {"read"}

    with pytest.raises(Unauthorized, match="Get a new one"):
        verifier.owner_of(HOSTILE[name]())


def test_several_audiences_are_fine(provider: Provider) -> None:
    """Ours must be among them."""
    assert provider.verifier().owner_of(token(aud=["billing", "calibrant"])).scopes == {"read"}


def test_keys_that_do_not_sign_are_not_used(provider: Provider) -> None:
    """Shared secrets, short keys, keys for encryption and what is no key at all are left out; the rest counts."""
    secret = jwk.OctKey.generate_key(256, {"kid": "secret"}, private=True)
    encrypting = FOREIGN.as_dict(private=False) | {"kid": "enc", "use": "enc"}
    provider.keys += [secret.as_dict(private=True), encrypting, {"kty": "RSA", "n": "AQAB", "e": "AQAB"}, {"kty": 1}, 7]
    verifier = provider.verifier()

    assert verifier.owner_of(token()).scopes == {"read"}
    for hostile in (
        jwt.encode({"alg": "HS256", "kid": "secret"}, claims(), secret),
        token(FOREIGN, {"kid": "enc"}),
    ):
        with pytest.raises(Unauthorized):
            verifier.owner_of(hostile)


def test_new_keys_are_fetched_and_old_ones_forgotten(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with a new key is accepted at once, and one with the withdrawn key no longer; unknown ids cause no flood of requests."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    verifier = provider.verifier()
    verifier.owner_of(token())
    provider.keys = [NEXT.as_dict(private=False)]

    with pytest.raises(Unauthorized):  # within the pause
        verifier.owner_of(token(NEXT))
    clock[0] += oidc.PAUSE_S + 1
    assert verifier.owner_of(token(NEXT)).scopes == {"read"}
    with pytest.raises(Unauthorized):
        verifier.owner_of(token(OWN))
    for n in range(50):
        with pytest.raises(Unauthorized):
            verifier.owner_of(token(OWN, {"kid": f"{n}"}))
    assert provider.asked == 2


def test_a_provider_that_is_down_is_waited_for(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys the answer is 503; the last ones count for a day."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    verifier = provider.verifier()
    provider.down = True
    with pytest.raises(ServiceBusy) as caught:
        verifier.owner_of(token())
    assert caught.value.retry_after_s == oidc.PAUSE_S

    provider.down = False
    clock[0] += oidc.PAUSE_S + 1
    verifier.owner_of(token())
    provider.down = True
    clock[0] += oidc.STALE_S - 1
    verifier.owner_of(token())
    clock[0] += 2
    with pytest.raises(ServiceBusy):
        verifier.owner_of(token())


@pytest.mark.parametrize(
    ("field", "value"), [("issuer", "https://evil.example"), ("jwks", "http://login.example/keys")]
)
def test_a_provider_that_contradicts_itself_is_not_believed(provider: Provider, field: str, value: str) -> None:
    """Its document must name the issuer of the settings, and an address as safe as the issuer's."""
    setattr(provider, field, value)

    with pytest.raises(ServiceBusy):
        provider.verifier().owner_of(token())


def test_a_token_is_as_good_as_a_key(ask: Ask, locked: FastAPI, provider: Provider, lab_key: str) -> None:
    """It opens what its scopes allow, and no administration; keys go on working, and without a provider tokens are 401."""

    def status(method: str, path: str, bearer: str) -> int:
        return ask(locked, method, path, headers={"Authorization": f"Bearer {bearer}"}).status_code

    assert status("GET", "/v1/models", token()) == 401
    object.__setattr__(locked.state.services, "tokens", provider.verifier())

    assert status("GET", "/v1/models", token()) == 200
    assert status("GET", "/monailabel/info/", token()) == 200
    assert status("POST", "/v1/scans", token()) == 403
    assert status("GET", "/v1/models", token(scope="openid")) == 403
    assert status("POST", "/v1/models/x/load", token(scope="calibrant:submit calibrant:read")) == 403
    assert status("POST", "/v1/models/x/load", token(scope="calibrant:admin")) == 404
    assert status("GET", "/v1/models", token(aud="billing")) == 401
    assert status("GET", "/v1/models", lab_key) == 200
