"""The operator's own hosts: opened with the gateway, opened again when the models file changes."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import structlog

from gateway import telemetry
from gateway.billing import prices
from gateway.catalog.declared import Host
from gateway.catalog.loading import Catalog
from gateway.catalog.opening import open_catalog
from gateway.config import Settings
from gateway.config.environment import named_secret
from gateway.db.engine import Database, DatabaseUnavailable
from gateway.domain import SecretText
from gateway.errors import ConfigurationError, Conflict, InvalidRequest
from gateway.image_models import Model
from gateway.providers.base import HostProvider, ImageProvider, VendorProvider

PATIENCE_SECONDS = 1.0
"""The time that a list of models waits for hosts."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _State:
    """A host's last word on a model."""

    is_ready: bool
    asked_at: float


class Hosts:
    """Opens the declared hosts, and follows the models file.

    `vendors`, `providers` and `house` are the tables that the gateway reads at each call; entries
    are added and replaced, never taken out: a request may have chosen its model already.
    `forget_prices` drops the cached prices; calls would otherwise be quoted at the old ones until
    Postgres' notification arrives.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        database: Database,
        *,
        open_host: Callable[[Host], HostProvider],
        vendors: dict[str, VendorProvider],
        providers: dict[str, ImageProvider],
        house: dict[str, SecretText],
        forget_prices: Callable[[], None],
        today: Callable[[], date],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._database = database
        self._open_host = open_host
        self._vendors = vendors
        self._providers = providers
        self._house = house
        self._forget_prices = forget_prices
        self._today = today
        self._opened: dict[str, Host] = {}
        self._asked: dict[str, HostProvider] = {}
        self._states: dict[str, _State] = {}
        self._questions: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()

    def open(self) -> None:
        """Open the hosts of the catalogue.

        Raises:
            ConfigurationError: the variable of a credential is not set, or a file of certificates
                cannot be read.
        """
        hosts = self._catalog.hosts.values()
        self._take(hosts, house_keys(hosts), self._open_new(hosts))

    async def reload(self) -> bool:
        """Read the models file again; a file that is wrong changes nothing.

        Returns False if it was refused, which the log and an alarm say.
        """
        async with self._reloading:
            opened: dict[str, HostProvider] = {}
            try:
                fresh = await asyncio.to_thread(open_catalog, self._settings, self._today)
                keys = house_keys(fresh.hosts.values())
                opened = self._open_new(fresh.hosts.values())
                async with self._database.operator() as session:
                    await prices.seed(session, fresh.models.values())
                    await prices.enforce(session, fresh.declaration.prices)
            except (ConfigurationError, Conflict, InvalidRequest, DatabaseUnavailable) as error:
                for provider in opened.values():
                    await provider.close()
                log.error("models_file_refused", error=str(error))  # noqa: TRY400 - the words say it
                telemetry.alarm("models_file_refused")
                return False
            self._forget_prices()
            # A host is opened before a model of it can be found.
            self._take(fresh.hosts.values(), keys, opened)
            self._catalog.adopt(fresh)
            log.info(
                "models_file_read",
                models=len(fresh.declaration.models),
                hosts=len(fresh.hosts),
                fallbacks=len(fresh.declaration.fallbacks),
            )
            return True

    async def readiness(self, models: Iterable[Model]) -> dict[str, bool | None]:
        """Return which models of hosts are ready, by id; None where it is not known.

        A model is asked again after its host's `probe_seconds`: a question may wake one that was
        scaled to zero. The answer is waited for shortly; a late one is known the next time.
        """
        declared = [model for model in models if model.provider in self._catalog.hosts]
        if not declared:
            return {}
        now = time.monotonic()
        for model in declared:
            seconds = self._catalog.hosts[model.provider].probe_seconds
            state = self._states.get(model.id)
            is_due = state is None or now - state.asked_at >= seconds
            if seconds and is_due and model.id not in self._questions:
                task = asyncio.create_task(self._ask(model))
                self._questions[model.id] = task
        names = [model.id for model in declared]
        asked = [self._questions[name] for name in names if name in self._questions]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE_SECONDS)
        states = {model.id: self._states.get(model.id) for model in declared}
        return {name: None if state is None else state.is_ready for name, state in states.items()}

    async def _ask(self, model: Model) -> None:
        try:
            is_ready = await self.is_ready(model)
            self._states[model.id] = _State(is_ready, time.monotonic())
        finally:
            del self._questions[model.id]

    async def is_ready(self, model: Model) -> bool:
        """Ask a model's host now, with the house credential."""
        return await self._asked[model.provider].is_ready(model, self._house[model.provider])

    async def close(self) -> None:
        """Close replaced hosts at once; those in use are closed with the other providers."""
        closing = [*self._closing, *self._questions.values()]
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)

    def _open_new(self, hosts: Iterable[Host]) -> dict[str, HostProvider]:
        changed = [host for host in hosts if self._opened.get(host.name) != host]
        return {host.name: self._open_host(host) for host in changed}

    def _take(
        self,
        hosts: Iterable[Host],
        keys: Mapping[str, SecretText],
        new: Mapping[str, HostProvider],
    ) -> None:
        self._house.update(keys)
        for host in hosts:
            opened = new.get(host.name)
            if opened is None:
                continue
            replaced = self._providers.get(host.name)
            self._opened[host.name] = host
            self._asked[host.name] = opened
            self._vendors[host.name] = self._providers[host.name] = opened
            if replaced is not None:
                seconds = self._longest_seconds(host.name)
                task = asyncio.create_task(_close_later(replaced, seconds))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def _longest_seconds(self, name: str) -> int:
        """The longest time that a call of the host can still take."""
        models = self._catalog.declaration.models.values()
        reads = (model.read_timeout_seconds for model in models if model.provider == name)
        return max(reads, default=0) + self._settings.hold_margin_seconds


def house_keys(hosts: Iterable[Host]) -> dict[str, SecretText]:
    """Return the house credential of each host; empty for one that wants none.

    Raises:
        ConfigurationError: the variable of a credential is not set.
    """
    keys = {}
    for host in hosts:
        text = "" if host.bearer_env is None else named_secret(host.bearer_env)
        if text is None:
            raise ConfigurationError(
                f"{host.bearer_env} is not set: the models file names it as the credential of "
                f"'{host.name}'."
            )
        keys[host.name] = SecretText(text)
    return keys


async def _close_later(provider: ImageProvider, seconds: float) -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)
    await provider.close()
