"""Bearer tokens of an OpenID Connect provider, instead of keys; joserfc verifies them.

Only signatures by asymmetric algorithms count, and only by keys that the provider publishes at the address which its own
discovery document names: what a token's header says about keys, besides the id of a published one, is ignored.
"""

import hashlib
import threading
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import structlog
from joserfc import jwk, jwt
from joserfc.errors import JoseError

from service.errors import ServiceBusy, Unauthorized
from service.storage.keys import EVERYTHING, Owner, Scope

log = structlog.get_logger(__name__)

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Signatures that count; none with a shared secret, for which a public key could be passed off."""

SCOPES: Final[dict[str, Scope]] = {"calibrant:submit": "submit", "calibrant:read": "read"}
"""Scopes of a token that we know, besides `ADMIN`, which allows everything."""

ADMIN: Final = "calibrant:admin"

LEEWAY_S: Final = 30
"""Seconds by which the clocks of provider and service may differ."""

FRESH_S: Final = 3600.0
"""Seconds after which the provider's keys are fetched again, so that one that was withdrawn no longer counts."""

STALE_S: Final = 86400.0
"""Seconds for which they count if the provider does not answer."""

PAUSE_S: Final = 30.0
"""Least seconds between two fetches, whatever ids of keys the tokens name."""

_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1 << 20
_LONGEST_TOKEN: Final = 16384
_LEAST_RSA_BITS: Final = 2048

_UNKNOWN: Final = "This token is not accepted here. Get a new one from the identity provider of this service."


class TokenVerifier:
    """Finds out whom a token belongs to; any thread may ask."""

    def __init__(self, issuer: str, audience: str, transport: httpx.BaseTransport | None = None) -> None:
        """Prepare; nothing is fetched before the first token comes.

        Args:
            issuer: the provider's address, as its tokens write it.
            audience: the name of this service there.
            transport: of the requests to the provider; by default the network.
        """
        self._issuer = issuer
        self._transport = transport
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._keys: jwk.KeySet | None = None
        self._fetched = self._tried = float("-inf")
        self._turn = threading.Lock()

    def owner_of(self, token: str) -> Owner:
        """Return the owner of a token: a name that follows from issuer and subject and tells neither.

        Raises:
            Unauthorized: the token is not valid; the message does not say why.
            ServiceBusy: the provider's keys cannot be fetched.
        """
        if len(token) > _LONGEST_TOKEN:
            raise Unauthorized(_UNKNOWN)
        claims = self._verified(token)
        digest = hashlib.sha256(f"{self._issuer}\0{claims['sub']}".encode()).hexdigest()
        name = f"oidc-{digest[:32]}"
        granted = _granted(claims)
        admin = ADMIN in granted
        scopes = EVERYTHING if admin else frozenset(SCOPES[one] for one in granted & SCOPES.keys())
        return Owner(name, admin, name, scopes)

    def _verified(self, token: str) -> dict[str, Any]:
        """Return the claims of a valid token; if its key is unknown, the provider may have changed keys."""
        for keys in (self._current(), self._current(renew=True)):
            try:
                verified = jwt.decode(token, keys, algorithms=ALGORITHMS)
                self._claims.validate(verified.claims)
            except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
                fault = error
            else:
                if isinstance(verified.claims["sub"], str) and verified.claims["sub"]:
                    return verified.claims
                fault = ValueError("sub")
        raise Unauthorized(_UNKNOWN) from fault

    def _current(self, *, renew: bool = False) -> jwk.KeySet:
        now = time.monotonic()
        if (
            (renew or now - self._fetched > FRESH_S)
            and now - self._tried > PAUSE_S
            and self._turn.acquire(blocking=False)
        ):
            try:
                self._tried = now
                self._keys, self._fetched = self._fetch(), now
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                log.warning("keys of the identity provider not fetched", error=type(error).__name__)
            finally:
                self._turn.release()
        if self._keys is None or now - self._fetched > STALE_S:
            msg = "The identity provider of this service does not answer, so that no token can be checked. Try again in a moment."
            raise ServiceBusy(msg, PAUSE_S)
        return self._keys

    def _fetch(self) -> jwk.KeySet:
        with httpx.Client(timeout=_TIMEOUT_S, transport=self._transport) as http:
            about = _json(http, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            address = str(about["jwks_uri"])
            if about["issuer"] != self._issuer or urlsplit(address).scheme != urlsplit(self._issuer).scheme:
                raise ValueError("issuer")  # noqa: EM101 - only its type is logged
            found: list[jwk.Key] = [key for key in map(_imported, _json(http, address)["keys"]) if key is not None]
        return jwk.KeySet(found)


def _json(http: httpx.Client, url: str) -> dict[str, Any]:
    """Return a JSON object; redirects are not followed."""
    with http.stream("GET", url) as answer:
        answer.raise_for_status()
        if answer.is_redirect:
            raise ValueError("redirect")  # noqa: EM101 - as above
        content = b""
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > _MOST_BYTES:
                raise ValueError("size")  # noqa: EM101 - as above
    document = httpx.Response(200, content=content).json()
    if not isinstance(document, dict):
        raise TypeError
    return document


def _imported(document: Any) -> jwk.RSAKey | jwk.ECKey | None:  # noqa: ANN401 - a piece of JSON
    """Return a published key that may have signed a token; None for any other."""
    if not isinstance(document, dict) or document.get("use", "sig") != "sig":
        return None
    public = {name: value for name, value in document.items() if name != "d"}
    try:
        if document.get("kty") == "RSA":
            key = jwk.RSAKey.import_key(public)
            return key if key.raw_value.key_size >= _LEAST_RSA_BITS else None
        return jwk.ECKey.import_key(public) if document.get("kty") == "EC" else None
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _granted(claims: dict[str, Any]) -> set[str]:
    """Return the scopes of a token: words of `scope` (RFC 8693, section 4.2), or entries of `roles`."""
    scope, roles = claims.get("scope"), claims.get("roles")
    words = scope.split() if isinstance(scope, str) else []
    entries = [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []
    return {*words, *entries}
