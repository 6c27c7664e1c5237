"""`gateway models`, and SIGHUP: the models file is read again while the gateway serves."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from gateway.cli.app import app
from tests.harness import (
    GatewayProcess,
    Served,
    gateway_process,
    make_settings,
    process_environment,
    served_gateway,
)
from tests.models_files import write
from tests.money_helpers import client_of, eventually

FILE = """
[[providers]]
name = "cluster"
kind = "kserve"
base_url = "http://127.0.0.1:9"
probe_seconds = 0

[[models]]
id = "first"
provider = "cluster"
sizes = ["512x512"]
price = { per_image_usd = "0.002" }

[[fallbacks]]
model = "gpt-image-2"
to = ["first"]
"""


def run(*arguments: str, file: Path | None = None) -> tuple[int, str]:
    environment = {"GATEWAY_MODELS_FILE": None if file is None else str(file)}
    result = CliRunner().invoke(app, ["models", *arguments], env=environment)
    return result.exit_code, " ".join(result.output.split())


def test_check_counts_what_a_file_declares(tmp_path: Path) -> None:
    path = write(tmp_path, FILE)
    code, told = run("check", str(path), "--json")
    assert (code, json.loads(told)) == (
        0,
        {"file": str(path), "providers": 1, "models": 1, "fallbacks": 1, "prices": 0},
    )
    assert run("check", file=path)[0] == 0


def test_check_refuses_a_wrong_file_by_line_and_key(tmp_path: Path) -> None:
    path = write(tmp_path, FILE + "\n[[modles]]\n")
    code, told = run("check", str(path))
    assert code != 0
    assert "line 18: modles: unknown key" in told


def test_check_without_a_file_says_how_to_name_one() -> None:
    code, told = run("check")
    assert code != 0
    assert "GATEWAY_MODELS_FILE" in told


def test_list_shows_each_model_with_provider_price_and_fallbacks(tmp_path: Path) -> None:
    code, told = run("list", "--json", file=write(tmp_path, FILE))
    rows = {row["model"]: row for row in json.loads(told)}
    assert code == 0
    assert rows["first"]["provider"] == "cluster"
    assert rows["first"]["price"] == "0.002 an image"
    assert rows["gpt-image-2"]["fallbacks"] == ["first"]
    assert rows["dall-e-2"]["price"] == "0.016 an image to 0.02 an image"


@pytest.fixture
async def key_of(database: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with served_gateway(make_settings(database, tmp_path)) as served:
        yield served


async def names(process: GatewayProcess, client: httpx2.AsyncClient) -> set[str]:
    answer = await client.get("/v1/models")
    assert answer.status_code == 200
    return {one["id"] for one in answer.json()["data"]}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_signal_makes_a_running_gateway_read_the_file_again(
    key_of: Served, tmp_path: Path, workers: int
) -> None:
    path = write(tmp_path, FILE)
    environment = process_environment(key_of.gateway.settings)
    environment["GATEWAY_MODELS_FILE"] = str(path)
    options = ("--workers", str(workers))
    with gateway_process(
        environment, tmp_path / "log", *options, from_nothing=workers > 1
    ) as process:
        await process.until_ready(tries=2400)
        async with client_of(process.base_url, await key_of.key()) as client:
            assert "first" in await names(process, client)
            write(tmp_path, FILE.replace('"first"', '"second"') + "wrong = 1\n")
            process.process.send_signal(signal.SIGHUP)

            async def is_refused() -> bool:
                return "line 17: fallbacks[1].wrong: unknown key" in process.log.read_text()

            await eventually(is_refused)
            assert "first" in await names(process, client)
            write(tmp_path, FILE.replace('"first"', '"second"'))
            process.process.send_signal(signal.SIGHUP)

            async def has_second() -> bool:
                async with client_of(process.base_url, await key_of.key()) as fresh:
                    return "second" in await names(process, fresh)

            await eventually(has_second, seconds=120)
