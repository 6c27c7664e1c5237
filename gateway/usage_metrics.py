"""Metrics of purchases by model, and of requests and purchases by tenant.

Only some tenants have series of their own, since each costs memory in every process and in
Prometheus: those that the operator names, and those that spend the most. The rest is `other`.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple
from uuid import UUID

from prometheus_client import Counter

from gateway import telemetry
from gateway.money import NanoUsd
from gateway.provider_answers import Usage

OTHER = "other"
"""The label of tenants without series of their own."""
LIFETIMES = 4
"""A tenant that no longer spends the most keeps its series: a counter that goes on in another one
counts wrong. So a process has series for at most so many times the tenants at a time."""


class TenantNames:
    """The labels of the tenants with series of their own."""

    def __init__(self) -> None:
        self._names: dict[UUID, str] = {}

    def of(self, tenant_id: UUID | None) -> str:
        """Return the tenant's label."""
        return OTHER if tenant_id is None else self._names.get(tenant_id, OTHER)

    def give(self, named: Mapping[UUID, str], *, at_most: int) -> None:
        """Give these tenants their names as labels, as long as there are at most so many.

        A tenant that was renamed keeps its former name where there is no room for another one.
        """
        labels = set(self._names.values())
        for tenant_id, name in named.items():
            if name in labels or len(labels) < at_most:
                self._names[tenant_id] = name
                labels.add(name)


names = TenantNames()
"""Those of this process, as its metrics are."""


def count_request(tenant_id: UUID, *, livemode: bool, status: int) -> None:
    """Count the answer to a tenant's request."""
    _answers(names.of(tenant_id), livemode, status // 100).inc()


def count_cost(
    tenant_id: UUID, provider: str, model: str, *, livemode: bool, nano: NanoUsd
) -> None:
    """Count the cost of a call that was charged."""
    _model(provider, model, livemode).cost.inc(nano)
    _tenant(names.of(tenant_id), livemode).cost.inc(nano)


def count_output(
    tenant_id: UUID,
    provider: str,
    model: str,
    *,
    livemode: bool,
    images: int,
    usage: Usage | None,
) -> None:
    """Count the images of a call, and the tokens that the provider reported."""
    of_model, of_tenant = _model(provider, model, livemode), _tenant(names.of(tenant_id), livemode)
    of_model.images.inc(images)
    of_tenant.images.inc(images)
    if usage is None:
        return
    of_tenant.input_tokens.inc(usage.input_tokens)
    of_tenant.output_tokens.inc(usage.output_tokens)
    of_model.text_input.inc(usage.text_input_tokens)
    of_model.image_input.inc(usage.image_input_tokens)
    of_model.text_output.inc(usage.text_output_tokens)
    of_model.image_output.inc(usage.image_output_tokens)


class _OfModel(NamedTuple):
    cost: Counter
    images: Counter
    text_input: Counter
    image_input: Counter
    text_output: Counter
    image_output: Counter


class _OfTenant(NamedTuple):
    cost: Counter
    images: Counter
    input_tokens: Counter
    output_tokens: Counter


# Finding a series by its labels takes longer than counting; there are as many as series.


@cache
def _answers(tenant: str, livemode: bool, hundreds: int) -> Counter:  # noqa: FBT001 - a key of the cache
    return telemetry.tenant_requests_total.labels(tenant, _text(livemode), f"{hundreds}xx")


@cache
def _model(provider: str, model: str, livemode: bool) -> _OfModel:  # noqa: FBT001 - a key of the cache
    labels = (provider, model, _text(livemode))
    tokens = telemetry.tokens_total
    return _OfModel(
        telemetry.cost_nano_usd_total.labels(*labels),
        telemetry.images_total.labels(*labels),
        *(tokens.labels(*labels, f"{kind}_input") for kind in ("text", "image")),
        *(tokens.labels(*labels, f"{kind}_output") for kind in ("text", "image")),
    )


@cache
def _tenant(tenant: str, livemode: bool) -> _OfTenant:  # noqa: FBT001 - a key of the cache
    labels = (tenant, _text(livemode))
    return _OfTenant(
        telemetry.tenant_cost_nano_usd_total.labels(*labels),
        telemetry.tenant_images_total.labels(*labels),
        telemetry.tenant_tokens_total.labels(*labels, "input"),
        telemetry.tenant_tokens_total.labels(*labels, "output"),
    )


def _text(livemode: bool) -> str:  # noqa: FBT001
    return str(livemode).lower()
