"""From a registry version to the servers: load everywhere, the canary, move the pointer, unload the old one.

vLLM caches prefixes by an adapter's name and path, so every version has a name and a path of its own (`prefix-version`)
and neither is ever used for other weights.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from streams.errors import Fatal, HaypileError, Transient
from streams.settings import ServingSettings
from streams.vllm import BadRequest, VllmPool
from trainers.canary import CanaryFailed, probe
from trainers.forgetting import has_learned
from trainers.history import Change, Kind
from trainers.registry import Registry

log = logging.getLogger(__name__)

PROBE = [{"role": "user", "content": "Say hello."}]


def adapter_name(serving: ServingSettings, version: str) -> str:
    """Name under which vLLM serves a version."""
    return f"{serving.adapter_prefix}-{version}"


def served_name(serving: ServingSettings, version: str | None) -> str:
    """Model name to ask for a version; null is the base."""
    return serving.model if version is None else adapter_name(serving, version)


class Servers:
    """The serving URLs, one client each. Use it as an async context manager."""

    def __init__(self, serving: ServingSettings) -> None:
        self.serving = serving
        key = serving.api_key.get_secret_value() if serving.api_key else None
        self.pools = [VllmPool([url], api_key=key, concurrency=4, timeout_s=serving.timeout_s) for url in serving.urls]
        self.serves = dict.fromkeys(serving.urls, False)
        """URL → whether it had the champion when `reconcile` last looked, or got it then."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Servers":
        for pool in self.pools:
            await self._stack.enter_async_context(pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def load(self, registry: Registry, version: str) -> str:
        """Load a version on every server and see that each answers under its name; returns the name.

        All or nothing: where one fails, those that had loaded it unload it, and the error goes on (`Transient`: a
        server is down; `Fatal`: a server refuses the adapter or the files are damaged).
        """
        await asyncio.to_thread(registry.verify, version)
        name, path = adapter_name(self.serving, version), str(registry.path(version))
        had = {pool.urls[0] for pool in self.pools if name in await pool.models(pool.urls[0])}

        async def load_one(pool: VllmPool) -> None:
            url = pool.urls[0]
            try:
                if url not in had:
                    await pool.load_adapter(url, name, path)
                await pool.chat(PROBE, model=name, max_tokens=1)
            except BadRequest as error:
                raise Fatal(f"vLLM at {url} does not take {version}: {error}") from None

        results = await asyncio.gather(*(load_one(pool) for pool in self.pools), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            await self.unload(version, skip=had)
            # A refusal is final, an outage is not: say the one that matters.
            raise next((error for error in failed if not isinstance(error, Transient)), failed[0])
        return name

    async def load_where_possible(self, registry: Registry, version: str) -> list[str]:
        """Load a version on the servers that can be reached; returns the URLs of the others, which the reconciler
        gives it when they are back. Raises `Fatal` for damaged files and where a server refuses it."""
        await asyncio.to_thread(registry.verify, version)
        name, path = adapter_name(self.serving, version), str(registry.path(version))
        away = []
        for pool in self.pools:
            [url] = pool.urls
            try:
                await pool.load_adapter(url, name, path)
            except BadRequest as error:
                raise Fatal(f"vLLM at {url} does not take {version}: {error}") from None
            except Transient as error:
                log.warning("%s is not loaded at %s: %s", name, url, error)
                away.append(url)
        return away

    async def canary(self, registry: Registry, version: str) -> None:
        """The canary of a version that is loaded; its report is kept with the version.

        Raises `CanaryFailed`, and `Transient` when a server cannot be asked.
        """
        if not self.serving.canary:
            return
        report = await probe(self.pools, self.serving, adapter_name(self.serving, version))
        kept = {**msgspec.to_builtins(report), "at": int(time.time() * 1000)}
        await asyncio.to_thread(registry.set_canary, version, kept)
        if not report.passed:
            raise CanaryFailed(report)

    async def unload(self, version: str, *, skip: frozenset[str] | set[str] = frozenset()) -> None:
        """Unload a version wherever it can be reached. A server that is down forgets it anyway; never raises."""
        name = adapter_name(self.serving, version)
        for pool in self.pools:
            if pool.urls[0] in skip:
                continue
            try:
                await pool.unload_adapter(pool.urls[0], name)
            except HaypileError as error:
                log.warning("%s stays loaded at %s: %s", name, pool.urls[0], error)

    async def reconcile(self, registry: Registry) -> int:
        """Load the champion where it is missing and unload what will not serve again; returns how many were loaded.

        Unloaded are former champions and rejected versions only: an unjudged challenger may be in the gate just now. A
        server that cannot be reached is left for the next time. Raises `Transient` when any server was not put right.
        """
        async with serving_lock(registry):
            return await self._reconcile(registry)

    async def _reconcile(self, registry: Registry) -> int:
        champion = registry.champion()
        manifests = {m.version: m for m in registry.versions()}
        former = {change.version for change in champion.history}
        rejected = {v for v, m in manifests.items() if m.refused}
        removed = {m.version for m in registry.pruned()}
        over = (former | rejected | removed) - {champion.version, None}
        stale = {adapter_name(self.serving, v) for v in manifests.keys() | removed if v in over}
        loaded, problems = 0, []
        for pool in self.pools:
            url = pool.urls[0]
            self.serves[url] = False
            try:
                there = await pool.models(url)
                if champion.version is not None:
                    name = adapter_name(self.serving, champion.version)
                    if name not in there:
                        await pool.load_adapter(url, name, str(registry.path(champion.version)))
                        log.info("%s had lost the champion: loaded %s", url, name)
                        loaded += 1
                self.serves[url] = True
                for name in stale & set(there):
                    await pool.unload_adapter(url, name)
            except HaypileError as error:
                problems.append(str(error))
        if problems:
            raise Transient("; ".join(problems))
        return loaded


async def move(
    servers: Servers,
    registry: Registry,
    version: str | None,
    *,
    reason: str,
    by: str,
    kind: Kind = "promote",
    still_ours: Callable[[], Awaitable[None]] | None = None,
    instead_of: Change | None = None,
) -> str:
    """Make a version (null: the base) the champion, on the servers and in the registry; returns its served name.

    A promotion is all or nothing: every server has the version and the canary has passed before the pointer moves
    (raises `CanaryFailed`). A rollback must also work while a server is down, so it has no canary, and a server that
    cannot be reached gets the version from the reconciler. Until the pointer moves, the old champion serves as before.

    `still_ours` is awaited right before the pointer moves: whoever holds a lease raises there if it is lost.
    `instead_of`: raises `Transient` unless that is still the last change of the pointer.
    """
    async with serving_lock(registry):
        champion = registry.champion()
        old = champion.version
        name = served_name(servers.serving, version)
        if instead_of is not None and champion.history[-1:] != [instead_of]:
            raise Transient("the champion was changed meanwhile: look again")
        if version is not None and kind == "rollback":
            await servers.load_where_possible(registry, version)
        elif version is not None:
            await servers.load(registry, version)
            if version != old:  # else it serves: it was moved, and this is a repeat after a crash
                await _canary_or_unload(servers, registry, version)
        if still_ours is not None:
            await still_ours()
        registry.set_champion(version, reason=reason, by=by, kind=kind)
        if old is not None and old != version:
            await servers.unload(old)
        return name


async def _canary_or_unload(servers: Servers, registry: Registry, version: str) -> None:
    try:
        await servers.canary(registry, version)
    except CanaryFailed:
        await servers.unload(version)
        raise


@asynccontextmanager
async def serving_lock(registry: Registry) -> AsyncIterator[None]:
    """`Registry.serving_lock` without blocking the event loop while another process holds it."""
    lock = registry.serving_lock()
    await asyncio.to_thread(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


async def promote(serving: ServingSettings, registry: Registry, version: str, *, reason: str, by: str) -> str:
    """`haypile models promote`: any version of the registry, by hand.

    Raises `Fatal` for one that learned from what was forgotten since: nobody should bring that back by a slip.
    """
    registry.path(version)
    if await asyncio.to_thread(has_learned, registry, version):
        raise Fatal(f"{version} learned from what was forgotten since (`haypile forget`): it is not promoted by hand")
    async with Servers(serving) as servers:
        return await move(servers, registry, version, reason=reason, by=by)


async def rollback(serving: ServingSettings, registry: Registry, *, reason: str, by: str) -> str:
    """`haypile models rollback`: the champion before this one serves again; returns its name."""
    version = registry.previous()
    async with Servers(serving) as servers:
        return await move(servers, registry, version, reason=reason, by=by, kind="rollback")
