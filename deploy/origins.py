"""Where each effective setting comes from: the default, the file, or an environment variable."""

import os
import re
from typing import Any

import yaml
from pydantic import BaseModel

from streams.settings import config_file, load_settings

MASK = "********"


def effective_settings() -> list[tuple[str, Any, str]]:
    """`(section.key, JSON value, origin)` of every setting, in the order of declaration. Raises `SettingsError`.

    Secrets, and the password in a URL, are masked.
    """
    settings = load_settings()
    file = config_file()
    in_file = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file else {}
    variables = {name.upper(): name for name in os.environ}

    def origin(path: tuple[str, ...]) -> str:
        own = "HAYPILE_" + "__".join(path).upper()
        whole = f"HAYPILE_{path[0]}".upper()
        for name in (own, whole):
            if name in variables:
                return f"environment {variables[name]}"
        place: Any = in_file
        for key in path:
            if not isinstance(place, dict) or key not in place:
                return "default"
            place = place[key]
        return f"file {file}"

    rows: list[tuple[str, Any, str]] = []
    dumped = settings.model_dump(mode="json")
    for name in type(settings).model_fields:
        if isinstance(getattr(settings, name), BaseModel):
            rows += [(f"{name}.{key}", mask(value), origin((name, key))) for key, value in dumped[name].items()]
        else:
            rows.append((name, mask(dumped[name]), origin((name,))))
    return rows


def mask(value: Any) -> Any:
    """Hides what pydantic calls a secret, and user and password of a URL."""
    if isinstance(value, list):
        return [mask(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"^(\w+://)[^/@]*@", rf"\1{MASK}@", value)
    return value
