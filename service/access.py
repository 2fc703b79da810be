"""Who asks, and what they may: API keys, and what each is allowed."""

from contextvars import ContextVar

from service.errors import (
    ForbiddenError,
    ProblemError,
    QuotaExceededError,
    UnauthenticatedError,
)
from service.keys import ANONYMOUS, Grant, KeyFile, digest_of
from service.metrics import Metrics
from service.quota import Bucket, Slots

_HOW = "send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`"


class Account:
    """What a caller may do, and what is left of its quota.

    Attributes:
        name: What logs and metrics call it.

    Args:
        name: As above.
        grant: What the file of keys says.
        bucket: What its rows come from; None for any number.
        metrics: What hears of them.
    """

    def __init__(self, name: str, grant: Grant, bucket: Bucket | None, metrics: Metrics) -> None:
        self.name = name
        self.bucket = bucket
        self._grant = grant
        self._metrics = metrics

    def require_route(self, route: str) -> None:
        """Refuse a path that it may not ask.

        Args:
            route: First part of the path.

        Raises:
            ForbiddenError: It has a key, which does not allow this.
            UnauthenticatedError: It has none.
        """
        allowed = self._grant.routes
        if allowed is not None and route not in allowed:
            possible = ", ".join(f"/{name}" for name in sorted(allowed)) or "nothing"
            raise self._refusal(f"may ask {possible}, not /{route[:80]}")

    def may_use(self, name: str, version: int) -> bool:
        """Tell whether it may use a version of a model."""
        allowed = self._grant.models
        return allowed is None or name in allowed or f"{name}@{version}" in allowed

    def require_model(self, name: str, version: int) -> None:
        """Refuse a model that it may not use; exceptions as of `require_route`."""
        if not self.may_use(name, version):
            possible = ", ".join(sorted(self._grant.models or ())) or "none"
            raise self._refusal(f"may use {possible}, not {name}@{version}")

    def require_rows(self) -> None:
        """Refuse a request before its body is read, where not even one row is left.

        Raises:
            QuotaExceededError: None is; tells when there will be one.
        """
        if self.bucket is not None:
            late_s = self.bucket.wait_s(1)
            if late_s:
                raise self._exceeded(late_s)

    def take(self, num_rows: int, *, is_first: bool) -> None:
        """Charge rows that are about to be run.

        Args:
            num_rows: How many.
            is_first: Whether the request has not run any yet. Having begun, it may also end:
                what its further graphs take is owed.

        Raises:
            QuotaExceededError: They are not there yet; tells when they will be.
            ForbiddenError: They never will.
        """
        if self.bucket is not None:
            if is_first and num_rows > self.bucket.most_rows:
                raise ForbiddenError(
                    f"{self._subject} may run {self.bucket.most_rows} rows at once, not "
                    f"{num_rows}; ask for fewer images per request"
                )
            late_s = self.bucket.take(num_rows, may_owe=not is_first)
            if late_s:
                raise self._exceeded(late_s)
        self._metrics.on_key_rows(self.name, num_rows)

    @property
    def _subject(self) -> str:
        return "who sends no key" if self.name == ANONYMOUS else f"the key {self.name}"

    def _refusal(self, what: str) -> ProblemError:
        if self.name == ANONYMOUS:
            return UnauthenticatedError(f"{self._subject} {what}; with a key, {_HOW}")
        return ForbiddenError(f"{self._subject} {what}; ask the operator for a key that does")

    def _exceeded(self, late_s: float) -> QuotaExceededError:
        return QuotaExceededError(
            f"{self._subject} has used up its rows for now, {self._grant.rows_per_minute:g} per "
            "minute; try again later, or ask for fewer images",
            retry_after_s=late_s,
        )


class Caller:
    """Who asks in one request.

    Args:
        account: What it may do.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self._has_begun = False

    def take(self, num_rows: int) -> None:
        """Charge rows that are about to be run; exceptions as of the account's `take`."""
        self.account.take(num_rows, is_first=not self._has_begun)
        self._has_begun = True


caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Who asks in the request of the running task; None where no keys are configured."""


class Accounts:
    """All callers that there are.

    Args:
        file: The keys.
        metrics: What hears of the rows that they take.
        num_processes: How many processes count them together.
    """

    def __init__(self, file: KeyFile, metrics: Metrics, num_processes: int = 1) -> None:
        grants: dict[str, Grant] = {**file.keys}
        if file.anonymous is not None:
            grants[ANONYMOUS] = file.anonymous
        metrics.add_keys(grants)
        slots = Slots(len(grants), num_processes)
        accounts = {
            name: Account(name, grant, _bucket(slots, index, grant), metrics)
            for index, (name, grant) in enumerate(grants.items())
        }
        self.anonymous = accounts.get(ANONYMOUS)
        self._by_digest = {grant.sha256: accounts[name] for name, grant in file.keys.items()}

    def find(self, key: bytes | None) -> Account:
        """Find who sends a key.

        The digest is looked up, never the key compared: how long that takes depends on bits that
        a guesser cannot choose, so that it tells nothing of the keys.

        Args:
            key: As it was sent; None for none.

        Raises:
            UnauthenticatedError: There is no key, or it is not known.
        """
        if key is None:
            if self.anonymous is None:
                raise UnauthenticatedError(f"an API key is needed: {_HOW}")
            return self.anonymous
        account = self._by_digest.get(digest_of(key))
        if account is None:
            raise UnauthenticatedError(
                f"the API key is not known here; check it, and {_HOW}", has_key=True
            )
        return account


def _bucket(slots: Slots, index: int, grant: Grant) -> Bucket | None:
    if grant.rows_per_minute is None:
        return None
    return Bucket(slots, index, grant.rows_per_minute, grant.most_rows)
