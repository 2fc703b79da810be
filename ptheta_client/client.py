"""The two clients: one waits, one is awaited; they differ in nothing else."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import anyio
import httpx

from ptheta_client import catalog, generation, judgement
from ptheta_client.call import Call
from ptheta_client.errors import PthetaError
from ptheta_client.retry import Exchange, Retry

P = ParamSpec("P")
T = TypeVar("T")

_DEFAULT_TIMEOUT_S = 60.0


class Operation(Generic[P, T]):
    """A method of both clients, made of the function that builds its call.

    Args:
        build: Builds the call; its arguments are those of the method.
    """

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self.build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, client: "AsyncClient", owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> Any:
        """Bind to a client."""
        if client is None:
            return self

        @wraps(self.build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._send(self.build(*args, **kwargs))

        return method


class Operations:
    """What both clients can do.

    Args:
        url: Address of the server, `http://127.0.0.1:8000`.
        api_key: Sent as `Authorization: Bearer`; servers without keys do not mind.
        timeout_s: Seconds for each call, retries and pauses included. The server is told what is
            left of them, and does not begin what cannot be ready in time.
        retry: How often calls are tried again.
    """

    models = Operation(catalog.models)
    model = Operation(catalog.model)
    model_file = Operation(catalog.model_file)
    ready = Operation(catalog.ready)
    sample = Operation(generation.sample)
    picture = Operation(generation.picture)
    complete = Operation(generation.complete)
    interpolate = Operation(generation.interpolate)
    animation = Operation(generation.animation)
    log_prob = Operation(judgement.log_prob)
    classify = Operation(judgement.classify)
    encode = Operation(judgement.encode)
    reconstruct = Operation(judgement.reconstruct)

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retry: Retry) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is positive, not {timeout_s}")
        self._timeout_s = timeout_s
        self._retry = retry
        headers = {"User-Agent": "ptheta-client"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._options: dict[str, Any] = {"base_url": url, "headers": headers}

    def _exchange(self, call: Call[T]) -> Exchange[T]:
        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        return Exchange(call, self._retry, timeout_s)


class Client(Operations):
    """A client that waits for answers. Threads may share it.

    Args:
        url: Address of the server, `http://127.0.0.1:8000`.
        api_key: Sent as `Authorization: Bearer`; servers without keys do not mind.
        timeout_s: Seconds for each call, retries and pauses included. The server is told what is
            left of them, and does not begin what cannot be ready in time.
        retry: How often calls are tried again.
        transport: Of httpx, for proxies and certificates.
        sleep: Pauses for so many seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        retry: Retry = Retry(),  # noqa: B008 - immutable
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, api_key, timeout_s, retry)
        self._http = httpx.Client(**self._options, transport=transport)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        exchange = self._exchange(call)
        while True:
            try:
                return exchange.read(self._http.send(exchange.request(self._http)))
            except (httpx.TransportError, PthetaError) as error:
                pause_s = exchange.pause_after(error)
            self._sleep(pause_s)


class AsyncClient(Operations):
    """A client whose answers are awaited; arguments as of `Client`. Tasks may share it."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        retry: Retry = Retry(),  # noqa: B008 - immutable
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__(url, api_key, timeout_s, retry)
        self._http = httpx.AsyncClient(**self._options, transport=transport)
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _send(self, call: Call[T]) -> T:
        exchange = self._exchange(call)
        while True:
            try:
                return exchange.read(await self._http.send(exchange.request(self._http)))
            except (httpx.TransportError, PthetaError) as error:
                pause_s = exchange.pause_after(error)
            await self._sleep(pause_s)
