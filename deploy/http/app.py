"""The interface: `POST /v1/prompts`, `POST /v1/feedback`, its OpenAPI document and `GET /healthz`.

A request is looked at in the order of what it costs: key, room, size, form, rules, rate. Only then anything is sent,
and 202 is the answer when Kafka has all of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from deploy.http.bodies import FeedbackBody, PromptBody, decoder, feedbacks, raw_prompts, schemas
from deploy.http.keys import owner
from deploy.http.limits import Limiter
from deploy.http.problems import SCHEMA, Problem, documented, response, retry_after
from deploy.http.sender import Keyed, Sender
from streams.errors import Transient
from streams.metrics import HttpMetrics
from streams.settings import HttpSettings, Settings
from streams.topics import topic_names
from streams.tracing import trace_context

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""What a client is told to wait when Kafka is away or the process is full."""
PATHS = ("/v1/prompts", "/v1/feedback", "/healthz", "/openapi.json")
"""Labels of the metrics; any other path counts as `other`."""
JSON_BODY = "application/json"


class Accepted(BaseModel):
    """What Kafka has now."""

    accepted: list[str] = Field(description="Ids of the records, in their order.")


class Health(BaseModel):
    """The process lives; whether its Kafka does is another matter."""

    kafka: bool = Field(description="Whether the last use of Kafka worked.")


def create_app(settings: Settings, metrics: HttpMetrics) -> FastAPI:
    """The application of one process."""
    given, topics = settings.http, topic_names(settings.kafka)
    sender = Sender(settings.kafka, metrics)
    limiter = Limiter(given.rate, given.burst)
    in_progress = 0

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with sender:
            yield

    app = FastAPI(
        title="haypile",
        description="Prompts and feedback for haypile, from apps that have no Kafka client.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
    )

    async def client_of(request: Request) -> AsyncIterator[str]:
        """Name of who asks, once there is room for the request."""
        nonlocal in_progress
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        name = owner(given.api_keys, key.strip()) if kind.lower() == "bearer" else None
        if name is None:
            raise Problem(
                401, "no_key", "give a valid key: `Authorization: Bearer KEY`", headers={"WWW-Authenticate": "Bearer"}
            )
        if in_progress >= given.max_requests:
            raise Problem(
                503, "busy", f"{in_progress} requests are in progress already", headers=retry_after(1), accepted=[]
            )
        in_progress += 1
        metrics.in_progress.set(in_progress)
        try:
            yield name
        finally:
            in_progress -= 1
            metrics.in_progress.set(in_progress)

    client = Depends(client_of)
    bearer = Depends(HTTPBearer(auto_error=False, description="An API key."))
    errors = documented(400, 401, 408, 413, 415, 422, 429, 503)

    async def take(path: str, topic: str, client_name: str, records: list[tuple[str, Keyed]]) -> Accepted:
        """Sends what a valid request holds; `records` with their ids."""
        wait = limiter.take(client_name, len(records), time.monotonic())
        if wait:
            detail = f"{len(records)} records are more than this key may send now ({given.rate:g} a second)"
            raise Problem(429, "too_many", detail, headers=retry_after(wait))
        ids = [id for id, _ in records]
        try:
            known = await sender.send(topic, [keyed for _, keyed in records], given.timeout_s)
        except Transient as error:
            log.debug("%s", error)
            known = [False] * len(records)
        accepted = [id for id, there in zip(ids, known, strict=True) if there]
        unknown = [id for id, there in zip(ids, known, strict=True) if not there]
        metrics.records.labels(path, "accepted").inc(len(accepted))
        metrics.records.labels(path, "unknown").inc(len(unknown))
        if unknown:
            detail = f"Kafka did not confirm {len(unknown)} of {len(ids)} records in time; send them again"
            raise Problem(503, "kafka", detail, headers=retry_after(RETRY_S), accepted=accepted, unknown=unknown)
        return Accepted(accepted=ids)

    read_prompts = decoder(PromptBody, given.max_batch)
    read_feedback = decoder(FeedbackBody, given.max_batch)

    @app.post(
        "/v1/prompts",
        status_code=202,
        responses=errors,
        dependencies=[bearer],
        openapi_extra=_body("PromptBodys"),
        summary="Prompts that users sent",
    )
    async def prompts(request: Request, name: Annotated[str, client]) -> Accepted:
        """One prompt or an array of them. 202: Kafka has all of them, each under the id that is told. With any other
        answer none was taken, except that 503 names those that were."""
        bodies = read_prompts(await _read(request, given))
        records = raw_prompts(bodies, settings, name)
        # The user is the key, as in `haypile ingest`: one user's prompts stay in order.
        trace = trace_context(request.headers)
        keyed = [(str(raw.id), Keyed(raw, raw.user_id or str(raw.id), trace)) for raw in records]
        return await take("/v1/prompts", topics.raw, name, keyed)

    @app.post(
        "/v1/feedback",
        status_code=202,
        responses=errors,
        dependencies=[bearer],
        openapi_extra=_body("FeedbackBodys"),
        summary="What users thought of answers",
    )
    async def feedback(request: Request, name: Annotated[str, client]) -> Accepted:
        """One opinion or an array of them, each about the prompt with that id, which may come later. The last word on a
        prompt counts; `haypile explain ID` shows it."""
        bodies = read_feedback(await _read(request, given))
        keyed = [(record.id, Keyed(record, record.id)) for record in feedbacks(bodies, settings, name)]
        return await take("/v1/feedback", topics.feedback, name, keyed)

    @app.get("/healthz", summary="Whether the process lives")
    async def health() -> Health:
        return Health(kafka=sender.up)

    _problems(app)
    _measured(app, metrics)
    _described(app, given.max_batch)
    return app


def _body(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {JSON_BODY: {"schema": schema}}}}


async def _read(request: Request, given: HttpSettings) -> bytes:
    """The body, as far as it is JSON, small enough and comes in time. Raises `Problem` 400, 408, 413 and 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_BODY:
        raise Problem(415, "not_json", f"the content type must be {JSON_BODY}, not {kind or 'left out'}")
    limit = given.max_body_bytes
    detail = f"the body is over {limit} bytes (http.max_body_bytes)"
    too_large = Problem(413, "too_large", detail, headers={"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(given.timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise Problem(408, "slow", f"the body did not come within {given.timeout_s:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "malformed", "the body has no end") from None
    return bytes(body)


def _problems(app: FastAPI) -> None:
    """Every error is a problem document."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> JSONResponse:
        return response(error)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "error")
        return response(Problem(error.status_code, code, error.detail, headers=dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return response(Problem(400, "malformed", str(error)))

    @app.exception_handler(Exception)
    async def defect(_request: Request, error: Exception) -> JSONResponse:
        return response(Problem(500, "internal", "this is a defect; the log of the process has it"))


def _measured(app: FastAPI, metrics: HttpMetrics) -> None:
    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        path = request.url.path if request.url.path in PATHS else "other"
        status = 500
        try:
            answer = await call_next(request)
            status = answer.status_code
            return answer
        finally:
            metrics.requests.labels(path, str(status)).inc()
            metrics.request_seconds.labels(path).observe(time.perf_counter() - started)


def _described(app: FastAPI, max_batch: int) -> None:
    """The OpenAPI document: the bodies' schemas are made from the types that decode them."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            document["components"]["schemas"] |= schemas(max_batch) | {"Problem": SCHEMA}
        found: dict[str, Any] = app.openapi_schema or {}
        return found

    app.openapi = openapi  # type: ignore[method-assign]
