"""Models and prices: the catalogue, who asks for each model, price versions, and a new version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.billing import prices, usage
from gateway.billing.model_askers import ASKED_DAYS, ModelAskers, asked_days, list_askers
from gateway.billing.prices import list_prices_of
from gateway.billing.quotes import unit_of
from gateway.billing.usage_queries import EVERYTHING, ReportQuery
from gateway.bootstrap import Gateway
from gateway.catalog.loading import Catalog, unknown_model
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader
from gateway.console.forms import (
    UNTOUCHED,
    FormState,
    moment_or_none,
    one_of,
    sent,
    usd,
    usd_or_none,
)
from gateway.console.pages.operator_shared import operator_page
from gateway.console.render import Crumb, Flash
from gateway.console.shared import Shared
from gateway.db.engine import OperatorSession
from gateway.db.pools import Beside
from gateway.domain import Price
from gateway.errors import InvalidRequest, ModelRetired
from gateway.identity.transactions import changing_as_operator, reading_as_operator
from gateway.identity.viewers import Viewer
from gateway.image_models import Model, SeedPrice, Unit
from gateway.money import NanoUsd
from gateway.rest.dependencies import GatewayDep
from gateway.rest.models import render_model

PATH = "/console/models"
MAX_CALLERS = 50
FIGURES_SECONDS = 60
TOKEN_RATES = ("text_input", "image_input", "image_output")
DONE = {"added": Flash("The price version was added. Calls after its start are quoted with it.")}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model as the list shows it. `asked`: the live requests of the last 30 days.

    `unit`: that of its price in force.
    """

    model: Model
    serving: str | None
    days_left: int | None
    price: Price | None
    unit: Unit
    from_nano: int | None
    is_ready: bool | None
    asked: int
    cost_nano: int


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A version of a price; `is_current`: in force now."""

    price: Price
    is_current: bool


@router.get(PATH)
async def show_models(request: Request, viewer: OperatorReader, gateway: GatewayDep) -> Response:
    """Show the catalogue: providers, dates, prices in force, readiness, and who asks."""
    catalog = gateway.core.catalog
    async with reading_as_operator(gateway, viewer) as session:
        table = _in_force(await prices.list_prices(session))
    asked = await _figures_of(request, gateway).get()
    ready = await gateway.hosts.readiness(catalog.models.values())
    today = datetime.now(UTC).date()
    lines = [
        _line(catalog, model, table, asked, today, is_ready=ready.get(model.id))
        for model in catalog.models.values()
    ]
    lines.sort(key=lambda line: (line.serving != line.model.id, line.model.provider))
    return operator_page(
        viewer,
        request,
        "models.html",
        title="Models and prices",
        lead=f"Requests are live ones of the last {ASKED_DAYS} days, by the model asked for.",
        lines=lines,
        asked=asked_days(),
        since=today - timedelta(days=ASKED_DAYS),
        hosts=sorted(catalog.hosts),
        dying=[
            line
            for line in lines
            if line.asked and line.days_left is not None and line.days_left <= 2 * ASKED_DAYS
        ],
    )


@router.get(PATH + "/{model_id:path}")
async def show_model(
    model_id: str, request: Request, viewer: OperatorReader, gateway: GatewayDep, done: str = ""
) -> Response:
    """Show one model: capabilities, price versions, and the tenants that ask for it."""
    return await _page(request, gateway, viewer, model_id, flash=DONE.get(done))


@router.post(PATH + "/{model_id:path}/prices")
async def add_price(
    model_id: str, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Add a version of a price of this model."""

    async def change() -> str:
        model = _find(gateway, model_id)
        name = one_of(form, "name", _price_names(gateway.core.catalog, model))
        rates = _rates(form)
        unit = Unit.TOKEN if usd_or_none(form, "per_image") is None else Unit.IMAGE
        prices.check(name, unit, gateway.core.catalog.models)
        start = moment_or_none(form, "effective_from", viewer.time_zone) or datetime.now(UTC)
        async with changing_as_operator(gateway, viewer, clears=prices.CACHE_TAG) as session:
            await prices.add(session, name, rates, effective_from=start)
        return f"{PATH}/{quote(model_id)}?done=added"

    return await sent("price", form, change, partial(_page, request, gateway, viewer, model_id))


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    model_id: str,
    *,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    catalog = gateway.core.catalog
    model = _find(gateway, model_id)
    names = _price_names(catalog, model)
    async with gateway.database.beside(Beside.OPERATORS_REPORTS).operator() as session:
        versions = [one for one in await prices.list_prices(session) if one.model in names]
        askers = await list_askers(session, [model.id], of_each=MAX_CALLERS)
    ready = await gateway.hosts.readiness([model])
    serving = _serving(catalog, model)
    host = catalog.hosts.get(model.provider)
    in_force = _in_force(versions)
    current = {one.id for one in in_force.values()}
    return operator_page(
        viewer,
        request,
        "model.html",
        title=model.id,
        crumbs=(Crumb("Models and prices", PATH),),
        flash=flash,
        state=state,
        model=model,
        serving=serving,
        shown=render_model(model, serving or model, catalog.fallbacks(model.id)),
        host=host,
        is_ready=ready.get(model.id),
        today=datetime.now(UTC).date(),
        now=datetime.now(UTC),
        names=names,
        name_choices=[(name, name) for name in names],
        versions=[
            PriceVersion(one, is_current=one.id in current)
            for one in sorted(versions, key=lambda v: (v.model, v.effective_from), reverse=True)
        ],
        is_per_image=bool(model.per_image),
        is_of_file=model.wording is not None,
        askers=askers.get(model.id, ModelAskers()),
        called_days=ASKED_DAYS,
        asked=asked_days(),
    )


def _find(gateway: Gateway, model_id: str) -> Model:
    model = gateway.core.catalog.models.get(model_id)
    if model is None:
        raise unknown_model(model_id[:100])
    return model


def _serving(catalog: Catalog, model: Model) -> Model | None:
    try:
        return catalog.serving(model, livemode=True)
    except ModelRetired:
        return None


def _price_names(catalog: Catalog, model: Model) -> list[str]:
    """Name the prices of a model: its own, that of its line, or one for each kind of image."""
    priced_as = catalog.models.get(model.priced_as, model)
    return list(list_prices_of([priced_as])) or [model.priced_as]


def _in_force(versions: Sequence[Price]) -> dict[str, Price]:
    """Choose the version of each price that is in force now."""
    now = datetime.now(UTC)
    found: dict[str, Price] = {}
    for one in versions:
        known = found.get(one.model)
        if one.effective_from <= now and (
            known is None or known.effective_from < one.effective_from
        ):
            found[one.model] = one
    return found


def _line(
    catalog: Catalog,
    model: Model,
    table: Mapping[str, Price],
    asked: Mapping[str, tuple[int, int]],
    today: date,
    *,
    is_ready: bool | None,
) -> ModelLine:
    serving = _serving(catalog, model)
    named = [table[name] for name in _price_names(catalog, model) if name in table]
    per_image = [one.per_image_nano for one in named if unit_of(model, one) is Unit.IMAGE]
    requests, cost_nano = asked.get(model.id, (0, 0))
    return ModelLine(
        model=model,
        serving=None if serving is None else serving.id,
        days_left=None if model.shutdown_date is None else (model.shutdown_date - today).days,
        price=named[0] if named else None,
        unit=unit_of(model, named[0]) if named else model.unit,
        from_nano=min(per_image, default=None),
        is_ready=is_ready,
        asked=requests,
        cost_nano=cost_nano,
    )


def _figures_of(request: Request, gateway: Gateway) -> Shared[dict[str, tuple[int, int]]]:
    """Return the process's figures of all models, made when they are first asked for."""

    async def read() -> dict[str, tuple[int, int]]:
        async with gateway.database.beside(Beside.OPERATORS_REPORTS).operator() as session:
            return await _asked(session)

    state = request.app.state
    if not hasattr(state, "console_models"):
        state.console_models = Shared(read, seconds=FIGURES_SECONDS)
    shared: Shared[dict[str, tuple[int, int]]] = state.console_models
    return shared


async def _asked(session: OperatorSession) -> dict[str, tuple[int, int]]:
    """Sum the live requests and their cost by the model asked for."""
    days = asked_days()
    query = ReportQuery(
        *(None, EVERYTHING),
        livemode=True,
        period=days.period,
        group_by=("requested_model",),
        own_days=days,
    )
    found: dict[str, tuple[int, int]] = {}
    async for row in usage.export(session, query):
        requests = row.requests + row.failed_requests + row.open_requests
        found[row.group[0] or ""] = (requests, row.cost_nano)
    return found


def _rates(form: Mapping[str, str]) -> SeedPrice:
    """Read the rates: those of tokens, or the price of an image.

    Raises:
        InvalidRequest: neither, or both.
    """
    per_image = usd_or_none(form, "per_image")
    rates = {name: usd_or_none(form, name) for name in (*TOKEN_RATES, "text_output")}
    if per_image is not None:
        if any(rate is not None for rate in rates.values()):
            raise InvalidRequest(
                "A price is one of tokens or one of images. Empty this field or the others.",
                param="per_image",
            )
        return SeedPrice(0, 0, 0, 0, per_image_nano=per_image)
    required = {name: usd(form, name) for name in TOKEN_RATES}
    text_output = rates["text_output"]
    return SeedPrice(
        text_input_nano=required["text_input"],
        image_input_nano=required["image_input"],
        image_output_nano=required["image_output"],
        text_output_nano=NanoUsd(required["image_output"]) if text_output is None else text_output,
    )
