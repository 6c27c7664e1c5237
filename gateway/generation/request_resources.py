"""The resources that a request holds from its admission until its call has ended."""

from uuid import UUID

from gateway.domain import ImageRequest
from gateway.load.concurrency import Bulkhead
from gateway.load.gate import GateSlot


class RequestResources:
    """The resources of a request until its call has ended: input files and slots."""

    __slots__ = ("_request", "_room", "_tenant_id", "slot")

    def __init__(self, request: ImageRequest) -> None:
        self._request = request
        self._room: Bulkhead | None = None
        self.slot: GateSlot | None = None

    def take(self, room: Bulkhead, tenant_id: UUID) -> None:
        """Take a slot for a generation.

        Raises:
            Unavailable: none is free.
        """
        room.take(tenant_id)
        self._room, self._tenant_id = room, tenant_id

    def release(self) -> None:
        """Free the slots and close the files."""
        if self._room is not None:
            self._room.give_back(self._tenant_id)
        if self.slot is not None:
            self.slot.leave()
        self._request.close()
