"""Tenants' latest outcomes at a target that they share: they tell who is being served."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from uuid import UUID

FORGET_SECONDS = 600.0
HEALTHY_SECONDS = 60.0
"""Age up to which a tenant's success proves that the provider works."""
MOST_TENANTS = 1000
"""Most tenants whose latest outcome is remembered; the least recent ones are forgotten."""


@dataclass(frozen=True, slots=True)
class _Latest:
    """A tenant's latest success or failure; `is_limited`: a rate limit refused a later call.

    Apart, because a rate limit may concern that request alone: it does not prove an outage.
    """

    at: float
    is_success: bool
    is_limited: bool = False

    def is_served(self, *, within_limits: bool) -> bool:
        return self.is_success and not (within_limits and self.is_limited)


class TenantOutcomes:
    """The latest outcome of each tenant, with the time passed in.

    `within_limits` asks for tenants that no rate limit has refused since.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[UUID, _Latest] = OrderedDict()

    def remember(self, now: float, tenant_id: UUID, *, is_success: bool) -> None:
        """Record a success or a failure."""
        self._latest[tenant_id] = _Latest(now, is_success)
        self._latest.move_to_end(tenant_id)
        if len(self._latest) > MOST_TENANTS:
            self._latest.popitem(last=False)

    def limit(self, tenant_id: UUID) -> None:
        """Record that a rate limit refused a call."""
        if (latest := self._latest.get(tenant_id)) is not None:
            self._latest[tenant_id] = replace(latest, is_limited=True)

    def serves_some(self, now: float, *, within_limits: bool = False) -> bool:
        """Tell whether any tenant's latest call succeeded in the last minute."""
        for latest in reversed(self._latest.values()):
            if now - latest.at > HEALTHY_SECONDS:
                return False
            if latest.is_served(within_limits=within_limits):
                return True
        return False

    def was_served(self, now: float, tenant_id: UUID, *, within_limits: bool = False) -> bool:
        """Tell whether a tenant's latest call succeeded, in the last ten minutes."""
        latest = self._latest.get(tenant_id)
        if latest is None or now - latest.at > FORGET_SECONDS:
            return False
        return latest.is_served(within_limits=within_limits)
