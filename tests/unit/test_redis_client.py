"""What errors of redis-py mean, and that no password is told."""

import socket

import pytest
from redis import exceptions

from streams.errors import Fatal, HaypileError, SettingsError, Transient
from streams.redis_client import address, connect, translate
from streams.settings import RedisSettings


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (exceptions.ConnectionError("Connection refused"), Transient),
        (exceptions.TimeoutError("Timeout reading"), Transient),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), Transient),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), Transient),
        (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Transient),
        (exceptions.MasterDownError("Link with MASTER is down"), Transient),
        (exceptions.MaxConnectionsError("Too many connections"), Transient),
        (exceptions.ResponseError("MISCONF Errors writing to the AOF file"), Transient),
        (exceptions.ResponseError("BUSY Redis is busy running a script"), Transient),
        (
            exceptions.ResponseError(
                "Error running script (call to f_12): @user_script:355: @user_script: 355: -READONLY You can't write "
                "against a read only replica."
            ),
            Transient,
        ),
        (exceptions.ResponseError("Error running script (call to f_12): @user_script:1: Script attempted"), Fatal),
        (OSError("no route to host"), Transient),
        (exceptions.AuthenticationError("invalid username-password pair"), Fatal),
        (exceptions.NoPermissionError("this user has no permissions"), Fatal),
        (exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 400'"), Fatal),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), Fatal),
        (exceptions.ResponseError("unknown command 'ZMSCORE'"), Fatal),
    ],
)
def test_translate(error: Exception, becomes: type[HaypileError]) -> None:
    client = connect(RedisSettings(url="redis://user:secret@db.example:6390/3"))
    with pytest.raises(becomes, match=r"db\.example:6390/3") as caught, translate(client):
        raise error
    assert str(error) in str(caught.value) and "secret" not in str(caught.value)
    assert type(caught.value) is becomes


def test_other_errors_pass() -> None:
    client = connect(RedisSettings())
    with pytest.raises(ZeroDivisionError), translate(client):
        raise ZeroDivisionError
    with pytest.raises(Fatal, match="mine"), translate(client):
        raise Fatal("mine")


def test_address() -> None:
    assert address(connect(RedisSettings(url="redis://:pw@h:1/2"))) == "h:1/2"
    assert address(connect(RedisSettings(url="redis://h"))) == "h:6379/0"
    assert address(connect(RedisSettings(url="unix://:pw@/run/r.sock"))) == "unix:/run/r.sock"


@pytest.mark.parametrize("url", ["redis://h:port/0", "redis://h:99999999/0"])
def test_a_url_that_cannot_be_used_is_a_setting(url: str) -> None:
    with pytest.raises(SettingsError, match=r"redis\.url"):
        connect(RedisSettings(url=url))


async def test_nobody_listens() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    client = connect(RedisSettings(url=f"redis://127.0.0.1:{port}"))
    with pytest.raises(Transient, match=f"127.0.0.1:{port}"), translate(client):
        await client.ping()
    await client.aclose()
