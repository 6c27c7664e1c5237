"""The command that prints a sign-in link of the console."""

import json

from gateway.cli.output import JsonOption, console, invoker, print_json, run
from gateway.config import Settings
from gateway.core import Core
from gateway.domain import SecretText
from gateway.identity.links import make_link


def console_link(as_json: JsonOption = False) -> None:
    """Print a link that signs in to the console as operator-admin, once, within ten minutes."""

    async def work(core: Core) -> tuple[SecretText, int]:
        async with core.database.operator(by=invoker()) as session:
            base_url = _base_url(core.settings)
            link = await make_link(session, invoker(), core.settings, base_url=base_url)
        return link, core.settings.console_link_seconds

    link, seconds = run(work)
    if as_json:
        print_json({"url": link.reveal(), "expires_in_seconds": seconds})
        return
    console.print(link.reveal())
    console.print(f"It signs in once, within {seconds // 60} minutes, as operator-admin.")


def _base_url(settings: Settings) -> str:
    """The address to open: the setting, else that of the last `serve`, which knew its port."""
    path = settings.quickstart_file
    if "public_url" in settings.model_fields_set or not path.exists():
        return settings.public_url
    return str(json.loads(path.read_text())["base_url"])
