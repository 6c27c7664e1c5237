"""A tenant's own administration, with the scope `tenant:admin`: keys, users, limits, webhooks.

Thin routes over the same core and schemas as the operators' routes; only `gateway.main` imports
them.
"""

from fastapi import APIRouter

from gateway.rest.tenant import keys, limits, users, webhooks

router = APIRouter()
for noun in (keys, users, limits, webhooks):
    router.include_router(noun.router)
