"""More than a hundred hazardous files sent to the edits route: each is answered correctly."""

import httpx2
import pytest

from gateway.media.decoder import ImageProblem
from tests.harness import Served, error_of
from tests.hazards import Hazard, hazards
from tests.stub_openai import Stub

FIELDS = {"model": "gpt-image-2", "prompt": "add a kite", "size": "1024x1024", "quality": "low"}
GROUPS = 8


def code_of(hazard: Hazard) -> str:
    unsupported = hazard.expected is ImageProblem.UNSUPPORTED
    return "unsupported_file_mimetype" if unsupported else "invalid_image_file"


async def send(http: httpx2.AsyncClient, hazard: Hazard, field: str = "image") -> httpx2.Response:
    files = {field: ("holiday.png", hazard.content, "image/png")}
    if field == "mask":
        good = next(h for h in hazards() if h.expected is None)
        files["image"] = ("good.png", good.content, "image/png")
    return await http.post("/v1/images/edits", data=FIELDS, files=files)


@pytest.mark.parametrize("group", range(GROUPS))
async def test_every_hazard_is_refused_by_its_code_or_sent_on_clean(
    served: Served, stub: Stub, group: int
) -> None:
    stub.configure(keep_files=True)
    sent_on = 0
    async with served.http(await served.key()) as http:
        for hazard in hazards()[group::GROUPS]:
            response = await send(http, hazard)
            if hazard.expected is None:
                assert response.status_code == 200, (hazard.name, response.text)
                sent_on += 1
                [received] = stub.files[-1]
                assert not any(trace in received for trace in hazard.hidden), hazard.name
            else:
                found = (response.status_code, error_of(response)["code"])
                assert found == (400, code_of(hazard)), (hazard.name, response.text)
    assert len(stub.calls) == sent_on
    rows = await served.owner_sql("SELECT state FROM reservation")
    assert [row.state for row in rows] == ["posted"] * sent_on


async def test_a_hazardous_mask_is_refused_as_a_mask(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        for hazard in hazards()[::12]:
            if hazard.expected is not None:
                response = await send(http, hazard, "mask")
                error = error_of(response)
                assert (response.status_code, error["code"], error["param"]) == (
                    400,
                    "invalid_mask_image_format",
                    "mask",
                ), hazard.name
    assert stub.calls == []


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(hazards()) >= 40
