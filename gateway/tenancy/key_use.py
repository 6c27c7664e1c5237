"""The last use of API keys, as the request log notes it."""

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.key_tables import ApiKeyUseRow


async def last_uses(
    session: TenantSession | OperatorSession, tenant_id: UUID, root_ids: Collection[UUID]
) -> Mapping[UUID, datetime]:
    """Return the last use of each line of keys, by the id of its first key.

    Accurate to half a minute; lines that were never used are missing, as are all while the request
    log is off.
    """
    rows = await session.execute(
        select(ApiKeyUseRow.api_key_id, ApiKeyUseRow.last_used_at).where(
            ApiKeyUseRow.tenant_id == tenant_id, ApiKeyUseRow.api_key_id.in_(root_ids)
        )
    )
    return {row.api_key_id: row.last_used_at for row in rows}
