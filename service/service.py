"""The state of the server: its models, its workers, and whether it takes requests."""

import asyncio
import logging
from typing import Literal

from service.batcher import Batcher
from service.catalog import Catalog
from service.errors import DrainingError, ModelLoadingError
from service.manifest import Operation
from service.metrics import Metrics
from service.model import Model
from service.settings import Settings
from service.workers import Workers

logger = logging.getLogger(__name__)

Phase = Literal["loading", "serving", "draining", "stopped"]


class Service:
    """What all routes share.

    Args:
        settings: What the operator chose.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers = Workers(settings.threads, settings.quick_s)
        self.metrics = Metrics()
        self.catalog = Catalog(settings, self.workers, self.metrics)
        self.phase: Phase = "loading"
        self._loading: asyncio.Task[None] | None = None
        self._is_loaded = False
        self._failure = ""

    def start(self) -> None:
        """Begin to load the models; the server answers meanwhile that they are loading."""
        self._loading = asyncio.create_task(self._load())

    def begin_drain(self) -> None:
        """Tell load balancers to go elsewhere, but go on serving."""
        self.phase = "draining"

    async def stop(self) -> None:
        """Finish what is in flight, within the drain limit, and end the threads."""
        self.phase = "stopped"
        if self._loading is not None:
            await self._loading
        for batcher in self._batchers():
            batcher.close()
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self.workers.wait_until_idle()
        except TimeoutError:
            self.give_up()
        await asyncio.to_thread(self.workers.close)

    def give_up(self) -> None:
        """Refuse what waits and end what runs; called when the drain limit has passed."""
        logger.warning("gave up on requests in flight after the drain limit")
        for batcher in self._batchers():
            batcher.abort()

    def find(self, reference: str | None, operation: Operation | None = None) -> Model:
        """Find a model for a request.

        Raises:
            ModelLoadingError: The models are not loaded yet.
            DrainingError: The server is shutting down.
            ProblemError: As the catalog's `find`.
        """
        self.require_serving()
        return self.catalog.find(reference, operation)

    def require_serving(self) -> None:
        """Refuse a request before the models are there and after the drain window.

        Raises:
            ModelLoadingError: The models are not loaded yet.
            DrainingError: The server is shutting down.
        """
        if self.phase == "stopped":
            raise DrainingError
        if not self._is_loaded:
            raise ModelLoadingError

    def unreadiness(self) -> str | None:
        """Say why no traffic should come here; None when it should."""
        if self.phase == "loading":
            return self._failure or "the models are being loaded"
        if self.phase in {"draining", "stopped"}:
            return "the server is shutting down"
        if self.catalog.broken and self.settings.require_all_models:
            return f"broken bundles: {', '.join(sorted(self.catalog.broken))}"
        return None if self.catalog.models() else "the model store is empty"

    def _batchers(self) -> list[Batcher]:
        models = self.catalog.models()
        return [graph.batcher for model in models for graph in model.graphs.values()]

    async def _load(self) -> None:
        try:
            await asyncio.to_thread(self.catalog.load)
        except Exception as error:
            self._failure = "the model store cannot be read; see the log"
            logger.critical("the model store cannot be read: %s", error)
            return
        self._is_loaded = True
        if self.phase == "loading":
            self.phase = "serving"
