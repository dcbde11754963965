"""The console as an application: pages, logins, and the headers that keep other sites out.

Reading needs no login (put it behind your own); whatever changes something needs a session, which the token opens. The
session's cookie is not sent by requests that another site starts (SameSite=Strict), and a page's events come over a
socket that takes its own origin only.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated

from fastapi import FastAPI, Form, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from nicegui import core, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from deploy.console import login_page
from deploy.console.context import Context
from deploy.console.pages import buffer, flow, letters, models, prompt, training
from deploy.console.sessions import COOKIE, TooManyTries
from streams.errors import HaypileError
from streams.settings import Settings
from trainers.registry import GATE_PAGE, Registry

ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><path d='M3 27 16 5l13 22z' fill='#c98a1b'/></svg>"
HEADERS = {
    # The framework compiles its templates in the browser: it needs inline scripts and eval, but nothing from elsewhere.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

HEALTH = "/healthz"
PAGE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


class KnownHosts(TrustedHostMiddleware):
    """Refuses requests for a host that is not ours. A probe asks a container by its address, and learns nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == HEALTH:
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The application of this process. Once a process: the pages belong to the framework's one application."""
    context = Context(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sampling = asyncio.create_task(context.sampler.run())
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    given = settings.console
    hosts = ["localhost", "127.0.0.1", "[::1]", given.host, *given.allowed_hosts]
    app.add_middleware(KnownHosts, allowed_hosts=list(dict.fromkeys(hosts)), www_redirect=False)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await call_next(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    _routes(app, context)
    for page in (flow, buffer, prompt, training, models, letters):
        page.register(context)
    core.sio.eio.cors_allowed_origins = None  # the same origin only; the framework's default is any
    ui.run_with(
        app,
        title="haypile",
        favicon=ICON,
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=10,
    )
    return app


def _routes(app: FastAPI, context: Context) -> None:
    style = (files("deploy.console") / "style.css").read_text(encoding="utf-8")

    @app.get(HEALTH)
    async def health() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/style.css")
    async def stylesheet() -> Response:
        return Response(style, media_type="text/css", headers={"Cache-Control": "no-cache"})

    @app.get("/gate/{version}")
    async def gate(version: str) -> Response:
        """The gate's page holds what models answered: whatever is in it, it may run and load nothing."""
        registry = Registry(context.settings.training.registry)
        try:
            page = await asyncio.to_thread(lambda: (registry.path(version) / GATE_PAGE).read_bytes())
        except (HaypileError, OSError):
            return PlainTextResponse("there is no such page", 404)
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/login")
    async def ask() -> HTMLResponse:
        return HTMLResponse(login_page.html(possible=context.sessions.possible))

    @app.post("/login")
    async def login(request: Request, token: Annotated[str, Form()] = "") -> Response:
        try:
            session = context.sessions.login(token)
        except TooManyTries:
            return HTMLResponse(login_page.html(possible=True, problem="Too many tries. Wait a minute."), 429)
        if session is None:
            problem = "That is not the token." if context.sessions.possible else ""
            return HTMLResponse(login_page.html(possible=context.sessions.possible, problem=problem), 403)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE,
            session,
            max_age=int(context.settings.console.session_s),
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return answer

    @app.post("/logout")
    async def logout(request: Request) -> Response:
        context.sessions.logout(request.cookies.get(COOKIE))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE)
        return answer
