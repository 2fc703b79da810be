"""The state of the server: its models, its workers, and whether it takes requests."""

import asyncio
import logging
import time
from typing import Literal

from service.access import Accounts, caller
from service.batcher import Batcher
from service.board import Board
from service.catalog import Catalog
from service.errors import DrainingError, ModelLoadingError, OverloadedError
from service.keys import read_keys
from service.manifest import Operation
from service.memory import keep_blocks_of_runs, return_freed_memory
from service.metrics import Metrics
from service.model import Model
from service.settings import Settings
from service.workers import Workers

logger = logging.getLogger(__name__)

# Batches come and go within a tick, so a process looks at its mean over a second, and minds only a
# clear surplus: to connect anew costs a client more than to wait a little.
_NEWEST_TICK_WEIGHT = 0.1
_SURPLUS_SHARE = 0.25

# What is freed between others stays with the process, in the end as much again as is in use. To
# give it back takes milliseconds, hence now and then, and not from a process that rests.
_TRIM_S = 0.3
_FEW_CALLS = 1e-3

Phase = Literal["loading", "serving", "draining", "stopped"]


class Service:
    """What all routes share.

    Attributes:
        accounts: Who may do what; None where no API keys are configured.

    Args:
        settings: What the operator chose.
        board: What the processes of the server know of each other; None where there is only one.
    """

    def __init__(self, settings: Settings, board: Board | None = None) -> None:
        self.settings = settings
        self._board = board or Board()
        num_processes = self._board.num_processes
        self.workers = Workers(
            settings.threads(num_processes), settings.quick_s, has_siblings=num_processes > 1
        )
        self.metrics = Metrics(num_processes)
        self.accounts: Accounts | None = None
        if settings.api_keys_file is not None:
            keys = read_keys(settings.api_keys_file)
            self.accounts = Accounts(keys, self.metrics, num_processes)
        self.catalog = Catalog(
            settings, self.workers, self.metrics, settings.queue_rows(num_processes)
        )
        self._position = 0
        self._stage: Literal["loading", "serving", "stopped"] = "loading"
        self._loading: asyncio.Task[None] | None = None
        self._failure = ""
        self._mean_calls = 0.0
        self._num_to_shed = 0
        self._num_refused = 0.0
        self._next_trim = 0.0

    @property
    def phase(self) -> Phase:
        """Where this process is in its life; it drains together with its siblings."""
        if self._stage != "stopped" and self._board.is_draining:
            return "draining"
        return self._stage

    def load(self) -> None:
        """Load the models; a store that cannot be read is told by `unreadiness`."""
        try:
            self.catalog.load()
        except Exception as error:
            self._failure = "the model store cannot be read; see the log"
            logger.critical("the model store cannot be read: %s", error)
        keep_blocks_of_runs()

    def serve(self, position: int = 0) -> None:
        """Begin to answer, once the models are loaded.

        Args:
            position: Which of the server's processes this is.
        """
        self._position = position
        self.metrics.take_place(position)
        if not self._failure and self._stage == "loading":
            self._stage = "serving"
            self._board.post(position, ready=True)

    def start(self) -> None:
        """Load the models and begin to answer; until then every answer is that they load."""
        self._loading = asyncio.create_task(self._start())

    def tick(self) -> None:
        """Tell the other processes how busy this one is; called a few times a second."""
        self.metrics.refresh()
        self._mean_calls += _NEWEST_TICK_WEIGHT * (self.workers.num_calls - self._mean_calls)
        # Calls that are refused for a full queue are not counted among those under way, which a
        # small queue keeps few however many come.
        num_refused = self.metrics.own_refusals(OverloadedError.slug)
        is_full, self._num_refused = num_refused > self._num_refused, num_refused
        fair = self.metrics.share_calls(self._mean_calls)
        surplus = self._mean_calls - fair
        has_surplus = surplus > _SURPLUS_SHARE * fair + (0 if is_full else 1)
        fewest = 1 if is_full else 0
        self._num_to_shed = max(fewest, int(surplus / 2)) if has_surplus else 0
        if self._mean_calls > _FEW_CALLS and time.monotonic() >= self._next_trim:
            return_freed_memory()
            self._next_trim = time.monotonic() + _TRIM_S

    def sheds_connection(self) -> bool:
        """Tell whether the next answer should ask its client to connect anew.

        The kernel spreads connections blindly, and clients keep them: a process that has more
        calls than its siblings gives a few away, half of the surplus at a time.
        """
        if not self._num_to_shed:
            return False
        self._num_to_shed -= 1
        return True

    def begin_drain(self) -> None:
        """Tell load balancers to go elsewhere, but go on serving."""
        self._board.drain()

    @property
    def is_abandoned(self) -> bool:
        """Whether the server is to end without finishing what is in flight."""
        return self._board.is_abandoned

    async def stop(self) -> None:
        """Finish what is in flight, within the drain limit, and end the threads."""
        self._stage = "stopped"
        self._board.post(self._position, ready=False)
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
            ForbiddenError: The caller's API key is not for this model.
            UnauthenticatedError: There is no key, and it takes one to use this model.
            ProblemError: As the catalog's `find`.
        """
        self.require_serving()
        model = self.catalog.find(reference, operation)
        asking = caller.get()
        if asking is not None:
            asking.account.require_model(model.manifest.name, model.manifest.version)
        return model

    def models(self) -> list[Model]:
        """List all versions of all models that the caller may use."""
        models = self.catalog.models()
        asking = caller.get()
        if asking is None:
            return models
        may_use = asking.account.may_use
        return [m for m in models if may_use(m.manifest.name, m.manifest.version)]

    def newest(self) -> list[Model]:
        """List the newest version of each model, of those that the caller may use."""
        by_name: dict[str, Model] = {}
        for model in self.models():
            other = by_name.setdefault(model.manifest.name, model)
            if other.manifest.version < model.manifest.version:
                by_name[model.manifest.name] = model
        return list(by_name.values())

    def require_serving(self) -> None:
        """Refuse a request before the models are there and after the drain window.

        Raises:
            ModelLoadingError: The models are not loaded yet.
            DrainingError: The server is shutting down.
        """
        if self._stage == "stopped":
            raise DrainingError
        if self._stage == "loading":
            raise ModelLoadingError

    def unreadiness(self) -> str | None:
        """Say why no traffic should come to this server; None when it should."""
        match self.phase:
            case "loading":
                return self._failure or "the models are being loaded"
            case "draining" | "stopped":
                return "the server is shutting down"
        if self.catalog.broken and self.settings.require_all_models:
            return f"broken bundles: {', '.join(sorted(self.catalog.broken))}"
        if not self.catalog.models():
            return "the model store is empty"
        return "a process is being restarted" if self._board.num_missing else None

    def _batchers(self) -> list[Batcher]:
        models = self.catalog.models()
        return [graph.batcher for model in models for graph in model.graphs.values()]

    async def _start(self) -> None:
        await asyncio.to_thread(self.load)
        self.serve()
