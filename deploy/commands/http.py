"""`haypile http`."""

from typing import Annotated

import typer

from deploy.commands.common import JsonOption, print_json


def http(
    new_key: Annotated[
        str | None, typer.Option("--new-key", metavar="NAME", help="Only make an API key for a client of this name.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take prompts and feedback over HTTP, for apps without a Kafka client, until SIGTERM or Ctrl-C."""
    if new_key is not None:
        _new_key(new_key, as_json)
        return
    from deploy.logs import set_up_logs
    from streams.settings import load_settings

    settings = load_settings()
    set_up_logs(settings.log_level)

    from deploy.http.serve import run_http

    run_http(settings)


def _new_key(name: str, as_json: bool) -> None:
    """Prints a key, which is kept nowhere, and its digest for the settings."""
    from deploy.http.keys import digest, new_key

    key = new_key()
    if as_json:
        print_json({"name": name, "key": key, "sha256": digest(key)})
        return
    print(f"key for the client (it is not shown again): {key}")
    print("for haypile.yaml:")
    print(f"http:\n  api_keys:\n    {name}: {digest(key)}")
