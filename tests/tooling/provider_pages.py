"""The table of failures in `docs/providers.md`, from the contract that every provider keeps."""

from pathlib import Path

from gateway.billing.reservations import KIND_BY_OUTCOME
from gateway.domain import Outcome
from gateway.generation.failures import client_error
from gateway.providers.base import ProviderFailure
from tests.providers.contract import FAILURES, Failure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
BEGIN = "<!-- `make generated` writes this table from tests/providers/contract.py. -->\n"
END = "<!-- The generated table ends here. -->\n"
HEAD = "| failure | calls | outcome | ledger | answer |\n|---|---|---|---|---|\n"


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = "".join(_row(failure) for failure in FAILURES)
    return {PAGE: f"{before}{BEGIN}\n{HEAD}{rows}\n{END}{after}"}


def _row(failure: Failure) -> str:
    calls = "2, neither sent" if failure.outcome is Outcome.NOT_SENT else "1"
    cells = (failure.name, calls, failure.outcome, KIND_BY_OUTCOME[failure.outcome])
    error = client_error(
        ProviderFailure(failure.outcome, failure.reason, ""),
        house_credential=False,  # that of the house raises an alarm, for which there is no cause
        provider="openai",
        model="",
    )
    return f"| {' | '.join((*cells, f'{error.status} `{error.code or error.type}`'))} |\n"
