"""Where requests come in when API keys are configured: who asks, by which header, for what.

One layer in front of all routes, shut by default: a route that is added needs a key until it is
listed here as open.
"""

import math

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Scope

from service.access import Accounts, Caller, caller
from service.keys import ANONYMOUS

KEY_HEADER = "X-API-Key"

# Probes know no keys, the pages are the same for everybody, and what the document and readiness
# tell of this server are the names of its models.
_OPEN = frozenset(
    {"/", "/docs", "/openapi.json", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
)
_OPEN_PREFIX = "/page/"

_KEY_HEADER = KEY_HEADER.lower().encode()
_BEARER = b"bearer "
_PREFLIGHT_S = 86_400


def is_open(path: str) -> bool:
    """Tell whether a path needs no key."""
    return path in _OPEN or path.startswith(_OPEN_PREFIX)


class Gate:
    """Lets requests in, before anything else of them is looked at.

    Args:
        accounts: Who may do what.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def enter(self, scope: Scope) -> None:
        """Find who asks, and make it the `caller` of the running task.

        Raises:
            UnauthenticatedError: The request needs a key and has none that is known.
            ForbiddenError: Its key does not allow this path.
            QuotaExceededError: Its key has no rows left to run anything.
        """
        # Always set: the task of a request that waited in its connection inherits the caller of
        # the one before.
        caller.set(None)
        path: str = scope["path"]
        if is_open(path) or scope["method"] == "OPTIONS":
            return
        account = self._accounts.find(_key_of(scope))
        caller.set(Caller(account))
        scope["state"]["key"] = account.name
        account.require_route(path[1:].partition("/")[0])
        if scope["method"] == "POST":
            account.require_rows()

    def preflight(self, scope: Scope) -> Response | None:
        """Answer a browser that asks whether a page of another site may send a key along.

        With keys, GET requests are as open to other sites as without: who has a key may use it
        anywhere, and the browser has none to add by itself.

        Returns:
            The answer; None where the request is something else.
        """
        if scope["method"] != "OPTIONS":
            return None
        wanted = dict(scope["headers"]).get(b"access-control-request-method")
        if wanted != b"GET":
            return None
        headers = {
            "access-control-allow-origin": "*",
            "access-control-allow-methods": "GET",
            "access-control-allow-headers": f"Authorization, {KEY_HEADER}",
            "access-control-max-age": str(_PREFLIGHT_S),
        }
        return Response(status_code=204, headers=headers)


def mark(message: Message) -> None:
    """Add to the headers of an answer what its caller should know.

    Args:
        message: The start of the answer, as ASGI sends it.
    """
    asking = caller.get()
    if asking is None:
        return
    headers = MutableHeaders(raw=message["headers"])
    if asking.account.name != ANONYMOUS:
        # A cache that several clients share would hand it to those without the key.
        kept = headers.get("cache-control", "").split(", ")
        headers["cache-control"] = ", ".join(
            ["private", *(each for each in kept if each not in {"", "public"})]
        )
    bucket = asking.account.bucket
    if bucket is not None:
        # draft-ietf-httpapi-ratelimit-headers-10
        window_s = math.ceil(bucket.seconds_to_fill)
        reset_s = math.ceil(bucket.seconds_until_full)
        headers["ratelimit-policy"] = f'"rows";q={bucket.most_rows};w={window_s}'
        headers["ratelimit"] = f'"rows";r={bucket.num_rows};t={reset_s}'


def _key_of(scope: Scope) -> bytes | None:
    """Return the key of a request; its own header comes first, since a proxy may use the other."""
    bearer = None
    for name, value in scope["headers"]:
        if name == _KEY_HEADER:
            return bytes(value).strip()
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            bearer = bytes(value[len(_BEARER) :]).strip()
    return bearer
