"""The tenant's own webhooks: the operators' routes, with the caller's tenant as owner."""

from fastapi import APIRouter

from gateway.rest.admin.webhooks import routes

router = APIRouter(tags=["webhooks"])
router.include_router(routes, prefix="/v1/webhooks")
