"""Set-up before a measurement: tenants, keys, limits and budgets, over the operators' API."""

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tenant:
    """A tenant with one key, issued to one user."""

    id: str
    user_id: str
    key_id: str
    key: str


@dataclass(frozen=True)
class Operator:
    """A client of the operators' API with the admin key of the quick start."""

    base_url: str
    admin_key: str

    @classmethod
    def of(cls, port: int, folder: Path) -> "Operator":
        """Create a client of the gateway whose data directory is in `folder`."""
        quickstart = json.loads((folder / "data" / "quickstart.json").read_text())
        return cls(f"http://127.0.0.1:{port}", quickstart["admin_key"])

    def tenant(self, name: str) -> Tenant:
        """Create a tenant with a user and a key."""
        made = self._ask("POST", "/tenants", name=name)["id"]
        user = self._ask("POST", f"/tenants/{made}/users", name="alice")["id"]
        key = self._ask("POST", f"/tenants/{made}/keys", user_id=user)
        return Tenant(made, user, key["id"], key["secret"])

    def limit(self, tenant: Tenant, kind: str, value: int, **owner: str) -> None:
        """Set a limit; `owner` may be user_id or api_key_id."""
        self._ask("PUT", f"/tenants/{tenant.id}/limits", kind=kind, value=value, **owner)

    def budget(self, tenant: Tenant, limit_usd: str, **owner: str) -> None:
        """Set a monthly budget; `owner` may be user_id or api_key_id."""
        self._ask(
            "PUT", f"/tenants/{tenant.id}/budgets", window="month", limit_usd=limit_usd, **owner
        )

    def house_budget(self, limit_usd: str) -> None:
        """Set a monthly budget for all tenants' calls with the house credential."""
        self._ask("PUT", "/budgets", window="month", limit_usd=limit_usd)

    def check_books(self) -> None:
        """Check that no call is held or unknown, and that the ledger's invariants hold."""
        books = self._ask("GET", "/reconciliation")
        assert not sum(state["count"] for state in books["open"]), books
        assert books["invariants"] == {"checked": True, "breaks": []}, books

    def _ask(self, method: str, path: str, **body: object) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.base_url}/admin/v1{path}",
            json.dumps(body).encode() if body else None,
            {"Authorization": f"Bearer {self.admin_key}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            found: dict[str, Any] = json.load(answer)
        return found
