"""What tenants do for themselves with the scope `tenant:admin`: keys, users, limits, webhooks.

Thin routes over the same core as the operators' routes, with the same schemas.
"""

from fastapi import APIRouter

from gateway.rest.tenant import keys, limits, users, webhooks

router = APIRouter()
for noun in (keys, users, limits, webhooks):
    router.include_router(noun.router)
