"""A tenant's portal with seeded data, for images and timings of its pages."""

from uuid import UUID

from gateway.console.navigation import NAVIGATION
from gateway.identity.sessions import SignedIn
from gateway.identity.viewers import Role
from tests.console_browser import session_cookies
from tests.console_helpers import begin_session
from tests.console_seed import Seeded
from tests.harness import Served

TENANT = "Northwind Travel"
PROMPTS = (
    ("A lighthouse at dawn, calm sea, watercolour", "1024x1024"),
    ("A red bicycle in front of a bakery", "1536x1024"),
    ("Poster with a paper crane, two colours", "1024x1536"),
    ("City block at night, isometric", "1024x1024"),
    ("A fox in deep snow, from above", "1024x1024"),
)


async def make_images(served: Served, seeded: Seeded) -> str:
    """Make some images of the sandbox for the tenant; return the id of the last one."""
    tenant = seeded.tenants[TENANT].id
    await served.owner_sql("UPDATE tenant SET stores_prompts = true WHERE id = :id", id=tenant)
    key = await served.key(livemode=False, tenant_id=tenant, name="trying-out")
    async with served.http(key) as http:
        for prompt, size in PROMPTS:
            fields = {"prompt": prompt, "size": size, "model": "gpt-image-2", "quality": "low"}
            answer = await http.post("/v1/images/generations", json=fields)
            assert answer.status_code == 200, answer.text
        listed = await http.get("/v1/images", params={"limit": 1})
    return str(listed.json()["first_id"])


async def portal_cookies(served: Served, seeded: Seeded) -> list[dict[str, object]]:
    """Sign in as an operator and open the tenant's portal; return the browser's cookies."""
    jar = {str(one["name"]): str(one["value"]) for one in await session_cookies(served)}
    own = {"Sec-Fetch-Site": "same-origin"}
    async with served.http(cookies=jar) as http:
        path = f"/console/tenants/{seeded.tenants[TENANT].id}/portal"
        answer = await http.post(path, headers=own)
        assert answer.status_code == 303, answer.text
        token = answer.cookies["ig_session"]
    return [{"name": "ig_session", "value": token, "url": served.base_url}]


async def operator_cookies(served: Served) -> list[dict[str, object]]:
    """Sign in a person who operates the gateway; return the browser's cookies."""
    return await _cookies(served, SignedIn("Dana Lee", Role.OPERATOR_ADMIN, "oidc"))


async def tenant_cookies(served: Served, tenant_id: UUID) -> list[dict[str, object]]:
    """Sign in an administrator of the tenant; return the browser's cookies."""
    return await _cookies(
        served, SignedIn("Ana Ruiz", Role.TENANT_ADMIN, "oidc", tenant_id=tenant_id)
    )


async def _cookies(served: Served, who: SignedIn) -> list[dict[str, object]]:
    token = await begin_session(served, who)
    return [{"name": "ig_session", "value": token, "url": served.base_url}]


def portal_pages(image: str) -> dict[str, str]:
    """Every page of the portal's navigation, and further states, by the names of their files."""
    items = (item for group in NAVIGATION["tenant"] for item in group.items)
    listed = [item.path for item in items if not item.of_key]
    names = [path.removeprefix("/console").strip("/").replace("/", "-") for path in listed]
    pages = {
        f"portal-{name or 'home'}": f"{path}?mode=live"
        for name, path in zip(names, listed, strict=True)
    }
    return pages | {
        "portal-home-test": "/console?mode=test",
        "portal-gallery": "/console/gallery?mode=test",
        "portal-image": f"/console/gallery/{image}?mode=test",
        "portal-playground": "/console/playground?mode=test",
        "portal-playground-edit": f"/console/playground?image={image}&mode=test",
        "portal-same-again": f"/console/playground?same={image}&mode=test",
    }
