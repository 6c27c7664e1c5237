"""The navigation: each viewer sees the links whose pages their role opens."""

import pytest

from gateway.console.navigation import NAVIGATION, Side, current_path, navigation_for
from gateway.identity.viewers import PERMISSIONS, Role


def paths_of(role: Role) -> set[str]:
    """The addresses that a role sees in its navigation."""
    side: Side = "operator" if role.is_operator else "tenant"
    groups = navigation_for(side, PERMISSIONS[role])
    assert all(group.items for group in groups)
    return {item.path for group in groups for item in group.items}


def test_links_are_shown_to_the_roles_that_may_follow_them() -> None:
    assert "/console/people" in paths_of(Role.OPERATOR_ADMIN)
    assert "/console/people" in paths_of(Role.TENANT_ADMIN)
    assert "/console/people" not in paths_of(Role.TENANT_MEMBER)
    assert "/console/people" not in paths_of(Role.TENANT_BILLING_VIEWER)


def test_each_address_has_one_line_on_its_side() -> None:
    for groups in NAVIGATION.values():
        every = [item.path for group in groups for item in group.items]
        assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("path", "current"),
    [
        ("/console", "/console"),
        ("/console/costs", "/console/costs"),
        ("/console/people/sessions", "/console/people/sessions"),
        ("/console/people/01a2", "/console/people"),
        ("/console/elsewhere", None),
    ],
)
def test_a_page_belongs_to_the_nearest_line_above_it(path: str, current: str | None) -> None:
    assert current_path("operator", path) == current
