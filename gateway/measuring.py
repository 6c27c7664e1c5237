"""Gauges that no request sets: open calls, budgets, disks, certificates and secrets."""

import asyncio
import math
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import structlog
from cryptography import x509
from prometheus_client import Gauge

from gateway import telemetry, usage_metrics
from gateway.billing import ledger, measures
from gateway.billing.measures import BudgetUse
from gateway.config import Settings
from gateway.core import Core
from gateway.db.engine import Database
from gateway.vault.gateway_secrets import SecretPurpose

SECRETS = (SecretPurpose.LINK_KEY, SecretPurpose.PEPPER, SecretPurpose.WEBHOOK_KEY)
log = structlog.get_logger(__name__)


class Measures:
    """Sets these gauges."""

    def __init__(self, core: Core, database: Database) -> None:
        self._core = core
        self._database = database
        self._budgets: set[Gauge] = set()

    async def take(self) -> None:
        """Set every gauge to its present value.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        settings, secrets = self._core.settings, self._core.secrets
        for purpose in SECRETS:
            made_at = secrets.newest(purpose).created_at
            telemetry.secret_created_seconds.labels(purpose).set(made_at.timestamp())
        await asyncio.to_thread(_measure_machine, settings)
        top, named = settings.metrics_top_tenants, settings.metrics_tenant_names
        async with self._database.operator() as session:
            tenants = await measures.tenants_with_series(session, named=named, top=top)
            used = await measures.used_by_tenants(session, tuple(tenants))
            house = await measures.used_by_house(session)
        usage_metrics.names.give(tenants, at_most=len(named) + top * usage_metrics.LIFETIMES)
        self._set_budgets(used, house)

    async def count_open_calls(self) -> None:
        """Measure the calls whose cost is not known.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        async with self._database.operator() as session:
            sums = await ledger.sum_open(session)
        now = datetime.now(UTC)
        for state in ledger.OPEN_STATES:
            open_calls = [one for one in sums if one.state == state]
            telemetry.holds_open.labels(state).set(sum(one.count for one in open_calls))
            [live] = [one for one in open_calls if one.livemode]
            age = timedelta(0) if live.oldest is None else now - live.oldest
            telemetry.open_nano_usd.labels(state).set(live.amount_nano)
            telemetry.open_age_seconds.labels(state).set(max(0.0, age.total_seconds()))

    def _set_budgets(self, used: Sequence[BudgetUse], house: Sequence[BudgetUse]) -> None:
        values: dict[Gauge, float] = {}
        for one in used:
            label = usage_metrics.names.of(one.tenant_id)
            if label != usage_metrics.OTHER:
                values[telemetry.tenant_budget_used_ratio.labels(label, one.window)] = _ratio(one)
        for one in house:
            values[telemetry.house_budget_used_nano_usd.labels(one.window)] = one.used_nano
            values[telemetry.house_budget_limit_nano_usd.labels(one.window)] = one.limit_nano
        for removed in self._budgets - values.keys():
            removed.set(math.nan)  # no series can be removed where several processes share them
        for gauge, value in values.items():
            gauge.set(value)
        self._budgets = set(values)


def _ratio(use: BudgetUse) -> float:
    """Return the part of the limit that is used; all of it where the limit is 0."""
    return use.used_nano / use.limit_nano if use.limit_nano else 1.0


def _measure_machine(settings: Settings) -> None:
    for name, folder in _folders(settings).items():
        try:
            usage = shutil.disk_usage(folder)
        except OSError:  # no such directory: what stores in it says so
            continue
        telemetry.disk_free_bytes.labels(name).set(usage.free)
        telemetry.disk_size_bytes.labels(name).set(usage.total)
    for name, file in (
        ("tls", settings.tls_cert_file),
        ("c2pa", settings.c2pa_certificate_file),
    ):
        if file is not None:
            _measure_certificate(name, file)


def _folders(settings: Settings) -> dict[str, Path]:
    folders = {
        "data": settings.data_dir,
        "journal": settings.resolved_journal_dir,
        "temporary": Path(tempfile.gettempdir()),
    }
    store = urlsplit(settings.image_storage_url)
    if store.scheme == "file":
        folders["images"] = Path(url2pathname(store.path))
    return folders


def _measure_certificate(name: str, file: Path) -> None:
    """Measure the certificate of a PEM file that expires first."""
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("certificate_not_read", certificate=name, error=type(error).__name__)
        return
    expires_at = min(one.not_valid_after_utc for one in found)
    telemetry.certificate_expiry_seconds.labels(name).set(expires_at.timestamp())
