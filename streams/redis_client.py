"""Connecting to Redis or Valkey, and what its errors mean for the caller."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from streams.errors import Fatal, SettingsError, Transient
from streams.settings import RedisSettings
from streams.tls import redis_connection

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 10.0
"""Far above our slowest script (milliseconds), far below the Kafka session timeout."""
RETRIES = 3
"""Of redis-py itself, within about a second; longer waits belong to the caller of `Transient`."""

_TRANSIENT_REPLIES = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
)
"""Replies that pass by themselves or by an operator's hand, without a restart of ours."""


def connect(settings: RedisSettings) -> redis.asyncio.Redis:
    """A client with bytes in and out. Connects on first use; close it with `aclose()`. Raises `SettingsError`."""
    try:
        return redis.asyncio.Redis.from_url(
            settings.url,
            client_name="haypile",
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=30,
            retry=Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), RETRIES),
            **redis_connection(settings),
        )
    except (ValueError, TypeError) as error:
        raise SettingsError(f"settings: redis.url: {error}") from None


def address(client: redis.asyncio.Redis) -> str:
    """Where the client connects to, without user and password."""
    kwargs: dict[str, Any] = client.connection_pool.connection_kwargs
    if "path" in kwargs:
        return f"unix:{kwargs['path']}"
    return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}/{kwargs.get('db', 0)}"


@contextmanager
def translate(client: redis.asyncio.Redis) -> Iterator[None]:
    """Errors of redis-py become `Transient` (down, busy, full, read-only) or `Fatal` (refuses us, no Redis at all)."""
    try:
        yield
    except (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError) as error:
        raise Fatal(f"Redis at {address(client)} refuses us: {error}") from error
    except exceptions.InvalidResponse as error:
        raise Fatal(f"what listens at {address(client)} is no Redis: {error}") from error
    except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
        raise Transient(f"Redis at {address(client)}: {error}") from error
    except exceptions.ResponseError as error:
        text = str(error).split(" script: ")[0]  # where in the script it failed says nothing to the operator
        # Redis 6.2 wraps what a script ran into: "Error running script (…): @user_script: 3: -OOM command not …"
        code = text.partition(": -")[2] if "running script" in text else text
        if isinstance(error, _TRANSIENT_KINDS) or code.startswith(_TRANSIENT_REPLIES):
            raise Transient(f"Redis at {address(client)}: {text}") from error
        if text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            raise Fatal(f"Redis at {address(client)} refuses us: {text}") from error
        raise Fatal(f"Redis at {address(client)} cannot do what haypile needs (6.2 or later): {text}") from error
    except (exceptions.RedisError, OSError) as error:
        raise Transient(f"Redis at {address(client)}: {error}") from error


_TRANSIENT_KINDS = (
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
