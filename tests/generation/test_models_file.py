"""The models file: what it declares, what is refused by name, and how it is read again."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.catalog.declared import declare
from gateway.catalog.loading import load_catalog
from gateway.catalog.models_file import read_models_file
from gateway.catalog.opening import open_catalog
from gateway.config import Settings
from gateway.errors import ConfigurationError
from tests.harness import Served, error_of, make_settings, served_gateway
from tests.models_files import SIX, write
from tests.money_helpers import books
from tests.stub_kserve import StubKServe, running_kserve

PATH = "/v1/images/generations"
HOST = """
[[providers]]
name = "cluster"
kind = "kserve"
base_url = "BASE"
"""
MODEL = """
[[models]]
id = "sd"
provider = "cluster"
upstream_name = "minimal"
sizes = ["512x512"]
template = { instances = ["$prompt"] }
price = { per_image_usd = "0.002" }
"""
GOOD = HOST + MODEL


def refusal_of(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigurationError) as caught:
        declare(read_models_file(path), load_catalog().models)
    return str(caught.value).replace(str(path), "FILE")


# A change of the good file, and the words of the refusal: line and key.
WRONG = [
    ("kind =", "kinds =", ["FILE, line 4: providers[1].kinds: unknown key"]),
    ('name = "cluster"', 'name = "Cluster"', ["FILE, line 3: providers[1].name: "]),
    ('name = "cluster"', 'name = "gemini"', ["line 3: providers[1].name: 'gemini' is a provider"]),
    ('kind = "kserve"', 'kind = "triton"', ["line 4: providers[1].kind: "]),
    ('"BASE"', '"ftp://host"', ["line 5: providers[1].base_url: must be an http:// or https://"]),
    ('"BASE"', '"http://u:p@host"', ["line 5: providers[1].base_url: must be an http://"]),
    ('"BASE"', '"http://h"\nca_file = "x.pem"', ["line 6: providers[1].ca_file: there is no file"]),
    (
        '"BASE"',
        '"http://h"\nca_file = "../x.pem"',
        ["line 6: providers[1].ca_file: must be a path"],
    ),
    ('"BASE"', '"http://h"\nbearer_env = "a b"', ["line 6: providers[1].bearer_env: "]),
    ('id = "sd"', 'id = "gpt-image-2"', ["line 8: models[1].id: duplicate id 'gpt-image-2'"]),
    ('provider = "cluster"', 'provider = "other"', ["line 9: models[1].provider: there is no"]),
    ('price = { per_image_usd = "0.002" }', "", ["line 7: models[1].price: missing"]),
    ('per_image_usd = "0.002"', "", ["line 13: models[1].price: give per_image_usd or"]),
    ('"0.002"', "0.002", ["line 13: models[1].price.per_image_usd: an amount is a string"]),
    ('"0.002"', '"-1"', ["line 13: models[1].price.per_image_usd: "]),
    ('sizes = ["512x512"]', "", ["line 7: models[1]: give sizes, or size"]),
    ('["512x512"]', '["512"]', ["line 11: models[1].sizes[1]: "]),
    (
        'sizes = ["512x512"]',
        'sizes = ["512x512"]\ndefault_size = "64x64"',
        ["models[1]: default_size is none of"],
    ),
    (
        'sizes = ["512x512"]',
        "size = { min = 65, max = 70, multiple_of = 64 }",
        ["line 11: models[1].size: no multiple of"],
    ),
    (
        'sizes = ["512x512"]',
        'sizes = ["512x512"]\ndefaults = { steps = 500 }',
        ["models[1]: a number of steps exceeds max_steps"],
    ),
    (
        'sizes = ["512x512"]',
        'sizes = ["512x512"]\ndefaults = { seed = "7" }',
        ["models[1]: defaults.seed has the wrong type"],
    ),
    (
        'kind = "kserve"',
        'kind = "openai-compatible"',
        ["line 12: models[1].template: belongs to providers of kind kserve"],
    ),
    (
        'sizes = ["512x512"]',
        'sizes = ["512x512"]\nnegative_prompt_after = "|"',
        ["line 12: models[1].negative_prompt_after: belongs to providers of kind openai-compat"],
    ),
    ("[[models]]", "[[models]", ["FILE, line 7: not TOML: "]),
]


@pytest.mark.parametrize(("good", "wrong", "words"), WRONG, ids=[row[1][:40] for row in WRONG])
def test_a_mistake_is_refused_with_its_line_and_key(
    tmp_path: Path, good: str, wrong: str, words: list[str]
) -> None:
    assert good in GOOD
    told = refusal_of(tmp_path, GOOD.replace(good, wrong, 1))
    assert [one for one in words if one not in told] == [], told


FALLBACKS = [
    ('model = "nothing"\nto = ["sd"]', "line 16: fallbacks[1].model: there is no model 'nothing'"),
    ('model = "sd"\nto = ["nothing"]', "line 17: fallbacks[1].to: there is no model 'nothing'"),
    ('model = "sd"\nto = []', "line 17: fallbacks[1].to: "),
    ('model = "sd"\nto = ["sd"]', "fallbacks form a circle: sd → sd"),
    ('model = "sd"\nto = ["gpt-image-2", "gpt-image-2"]', "a model stands twice in the chain"),
    (
        'model = "sd"\nto = ["gpt-image-2"]\n[[fallbacks]]\nmodel = "gpt-image-2"\nto = ["sd"]',
        "line 20: fallbacks[2].to: the fallbacks form a circle: gpt-image-2 → sd → gpt-image-2",
    ),
    (
        'model = "sd"\nto = ["gpt-image-2"]\n[[fallbacks]]\nmodel = "sd"\nto = ["dall-e-2"]',
        "line 19: fallbacks[2].model: duplicate chain of 'sd'",
    ),
]


@pytest.mark.parametrize(("chain", "words"), FALLBACKS)
def test_a_wrong_chain_of_fallbacks_is_refused_by_name(
    tmp_path: Path, chain: str, words: str
) -> None:
    assert words in refusal_of(tmp_path, f"{GOOD}\n[[fallbacks]]\n{chain}\n")


PRICES = [
    ('model = "sd"\nper_image = "1"', "the price of 'sd' stands in its own table"),
    ('model = "nothing"\nper_image = "1"', "there is no price 'nothing'"),
    ('model = "dall-e-2"\nper_image = "1"', "'dall-e-2' has prices for its sizes: 256x256"),
    ('model = "gpt-image-2"\nper_image = "1"', "'gpt-image-2' is priced by the token"),
    ('model = "gpt-image-2"\ntext_input = "1"', "image_input and image_output are required"),
    (
        'model = "gpt-image-2-2026-04-21"\ntext_input = "1"\nimage_input = "1"\nimage_output = "1"',
        "'gpt-image-2-2026-04-21' has the price of 'gpt-image-2'",
    ),
]


@pytest.mark.parametrize(("price", "words"), PRICES)
def test_a_wrong_price_is_refused_by_name(tmp_path: Path, price: str, words: str) -> None:
    assert words in refusal_of(tmp_path, f"{GOOD}\n[[prices]]\n{price}\n")


def test_every_mistake_is_named_up_to_ten(tmp_path: Path) -> None:
    told = refusal_of(tmp_path, HOST + MODEL.replace("sizes", "sises").replace("price", "prize"))
    assert len(told.splitlines()) == 3
    many = refusal_of(tmp_path, HOST + "".join(f"k{n} = 1\n" for n in range(15)))
    assert many.splitlines()[-1] == "and 5 more"


def test_a_value_is_never_shown(tmp_path: Path) -> None:
    told = refusal_of(tmp_path, HOST + 'bearer = "a-secret-token"\n' + MODEL)
    assert "bearer: unknown key" in told
    assert "a-secret-token" not in told


def test_lines_are_found_in_sub_tables_and_after_long_texts(tmp_path: Path) -> None:
    long = (
        MODEL.replace('template = { instances = ["$prompt"] }', "")
        + '[models.constants]\na = """\n[[models]]\n"""\n'
    )
    second = MODEL.replace('"sd"', '"sd-2"') + "foo = 1\n"
    assert "line 26: models[2].foo: unknown key" in refusal_of(tmp_path, HOST + long + second)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "KSERVE_PRICE_PER_IMAGE_USD"),
        ({"KSERVE_PRICE_PER_IMAGE_USD": "much"}, "KSERVE_PRICE_PER_IMAGE_USD: "),
        ({"KSERVE_ENDPOINT": "http://h", "KSERVE_PRICE_PER_IMAGE_USD": "0"}, "KSERVE_MODEL_NAME"),
        ({"KSERVE_ENDPOINT": "ftp://h/v1/models/a", "KSERVE_PRICE_PER_IMAGE_USD": "0"}, "http"),
        ({"KSERVE_MODEL_NAME": "dall-e-2", "KSERVE_PRICE_PER_IMAGE_USD": "0"}, "duplicate id"),
    ],
)
def test_settings_of_one_model_are_refused_by_name(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    given = {"KSERVE_ENDPOINT": "http://127.0.0.1:9/v1/models/sd", **changes}
    with pytest.raises(ConfigurationError) as caught:
        open_catalog(make_settings("postgresql://x@127.0.0.1/x", tmp_path, **given))
    assert words in str(caught.value)


def test_a_price_of_nothing_is_a_price(tmp_path: Path) -> None:
    catalog = open_catalog(
        make_settings(
            "postgresql://x@127.0.0.1/x",
            tmp_path,
            KSERVE_ENDPOINT="http://127.0.0.1:9/v1/models/sd",
            KSERVE_PRICE_PER_IMAGE_USD="0",
        )
    )
    assert (catalog.models["sd"].read_timeout_seconds, catalog.hosts["kserve"].protocol) == (
        60,
        "v1",
    )


# Reloading


@pytest.fixture
async def kserve() -> AsyncIterator[StubKServe]:
    async with running_kserve() as stub:
        stub.keys.add("")
        yield stub


@pytest.fixture
def settings(database: str, kserve: StubKServe, tmp_path: Path) -> Settings:
    return make_settings(database, tmp_path, models_file=write(tmp_path, GOOD, kserve.base_url))


async def buy(served: Served, model: str = "sd") -> tuple[int, str | None]:
    async with served.http(await served.key()) as http:
        answer = await http.post(PATH, json={"model": model, "prompt": "a red circle"})
    code = None if answer.status_code == 200 else error_of(answer)["code"]
    return answer.status_code, code


async def test_a_call_is_billed_by_the_unit_of_its_price(
    served: Served, settings: Settings, kserve: StubKServe, tmp_path: Path
) -> None:
    assert await buy(served) == (200, None)
    (folder := tmp_path / "other").mkdir()
    by_second = GOOD.replace('per_image_usd = "0.002"', 'per_second_usd = "0.001"')
    file = write(folder, by_second, kserve.base_url)
    async with served_gateway(settings.model_copy(update={"models_file": file})) as other:
        # This gateway has the price of the other one, and the model of its own file.
        served.gateway.clear_caches(None)
        assert await buy(served) == (200, None)
        assert await buy(other) == (200, None)
    seconds = served.gateway.core.catalog.models["sd"].read_timeout_seconds
    first, *others = await books(served)
    assert (first.held_nano, first.final_nano) == (2_000_000, 2_000_000)
    for one in others:
        assert one.held_nano == seconds * 1_000_000
        assert 0 < (one.final_nano or 0) <= one.held_nano
        assert one.final_nano != 2_000_000


async def test_a_changed_file_is_read_and_entries_keep_their_price(
    served: Served, kserve: StubKServe, tmp_path: Path
) -> None:
    assert await buy(served) == (200, None)
    # The new price counts without the notification of it.
    await served.owner_sql("ALTER TABLE price DISABLE TRIGGER USER")
    changed = GOOD.replace("0.002", "0.003").replace('"sd"', '"sd"\nmax_images = 2')
    write(tmp_path, changed + MODEL.replace('"sd"', '"sd-2"'), kserve.base_url)
    assert await served.gateway.hosts.reload()
    assert await buy(served) == (200, None)
    assert await buy(served, "sd-2") == (200, None)
    assert sorted(one.final_nano or 0 for one in await books(served)) == [
        *(2_000_000, 2_000_000, 3_000_000),
    ]
    prices = await served.owner_sql("SELECT per_image_nano FROM price WHERE model = 'sd'")
    assert sorted(row[0] for row in prices) == [2_000_000, 3_000_000]
    [audited] = await served.owner_sql("SELECT after FROM audit WHERE action = 'price.added'")
    assert audited[0]["per_image"] == "0.003"
    assert await served.gateway.hosts.reload()  # the same file adds no version
    again = await served.owner_sql("SELECT count(*) FROM price WHERE model = 'sd'")
    assert again[0][0] == 2


async def test_a_wrong_file_changes_nothing(
    served: Served, kserve: StubKServe, tmp_path: Path
) -> None:
    write(tmp_path, GOOD.replace("0.002", "0.009") + "foo = 1\n", kserve.base_url)
    assert not await served.gateway.hosts.reload()
    assert await buy(served) == (200, None)
    assert await served.ledger_total() == 2_000_000


async def test_a_model_that_is_taken_out_is_gone_and_one_put_in_is_served(
    served: Served, kserve: StubKServe, tmp_path: Path
) -> None:
    write(tmp_path, HOST + MODEL.replace('"sd"', '"other"'), kserve.base_url)
    assert await served.gateway.hosts.reload()
    assert await buy(served) == (404, "model_not_found")
    assert await buy(served, "other") == (200, None)


async def test_certificates_that_cannot_be_read_are_refused(
    served: Served, kserve: StubKServe, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    write(tmp_path, GOOD.replace('"BASE"', '"BASE"\nca_file = "ca.pem"'), kserve.base_url)
    assert not await served.gateway.hosts.reload()
    assert await buy(served) == (200, None)


async def test_a_host_that_moves_is_called_at_its_new_address(
    served: Served, kserve: StubKServe, tmp_path: Path
) -> None:
    async with running_kserve() as second:
        second.keys.add("")
        write(tmp_path, GOOD, second.base_url)
        assert await served.gateway.hosts.reload()
        assert await buy(served) == (200, None)
        assert (len(kserve.calls), len(second.calls)) == (0, 1)


OVERRIDES = """
[[prices]]
model = "gpt-image-2"
text_input = "4"
image_input = "7"
image_output = "20"

[[prices]]
model = "gpt-image-2"
text_input = "4"
image_input = "7"
image_output = "25"
effective_from = START
"""


async def test_an_override_of_a_list_price_is_a_version_from_its_start(
    database: str, tmp_path: Path
) -> None:
    text = OVERRIDES.replace("START", "2099-01-01T00:00:00Z")
    settings = make_settings(database, tmp_path, models_file=write(tmp_path, text))
    for _ in "ab":  # a second start adds nothing
        async with served_gateway(settings) as served:
            [in_force] = await served.owner_sql(
                "SELECT image_output_nano FROM price WHERE model = 'gpt-image-2'"
                " AND effective_from <= now() ORDER BY effective_from DESC LIMIT 1"
            )
            rows = await served.owner_sql("SELECT count(*) FROM price WHERE model = 'gpt-image-2'")
        assert (in_force[0], rows[0][0]) == (20_000_000_000, 3)
    write(tmp_path, text.replace('"25"', '"26"'))
    with pytest.raises(ConfigurationError, match="another price from 2099-01-01"):
        async with served_gateway(settings):
            pass


async def test_a_price_without_a_start_ends_when_one_with_a_start_begins(
    database: str, tmp_path: Path
) -> None:
    text = OVERRIDES.replace("START", "2026-11-01T00:00:00Z")
    settings = make_settings(database, tmp_path, models_file=write(tmp_path, text))
    for _ in range(2):
        async with served_gateway(settings) as served:
            assert await served.gateway.hosts.reload()
            rows = await served.owner_sql(
                "SELECT image_output_nano FROM price WHERE model = 'gpt-image-2'"
                " ORDER BY effective_from"
            )
        assert [row[0] for row in rows][1:] == [25_000_000_000]


async def test_without_the_variable_of_a_credential_it_does_not_start(
    database: str, tmp_path: Path
) -> None:
    settings = make_settings(database, tmp_path, models_file=write(tmp_path, SIX))
    with pytest.raises(ConfigurationError, match="CLUSTER_TOKEN is not set"):
        async with served_gateway(settings):
            pass
