"""Errors as problem details (RFC 9457), and their schema."""

import math
from typing import Any

from fastapi.responses import JSONResponse


class Problem(Exception):
    """Ends a request with a status, a short `code` for programs and a sentence for people."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}
        self.more = more


TITLES = {
    400: "Malformed request",
    401: "No valid API key",
    404: "No such path",
    405: "Method not allowed",
    408: "Request too slow",
    413: "Request too large",
    415: "Not JSON",
    422: "Unacceptable records",
    429: "Too many records",
    500: "Internal error",
    503: "Try again later",
}


def response(problem: Problem) -> JSONResponse:
    """The answer to a request that ended with a problem."""
    title = TITLES.get(problem.status, "Error")
    body = {"title": title, "status": problem.status, "code": problem.code, "detail": problem.detail, **problem.more}
    return JSONResponse(body, problem.status, problem.headers, media_type="application/problem+json")


def retry_after(seconds: float) -> dict[str, str]:
    """The header, in whole seconds, 1 at least."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


_TEXTS = {"type": "array", "items": {"type": "string"}}
SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "Problem details (RFC 9457) with a `code` for programs.",
    "type": "object",
    "required": ["title", "status", "code", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "description": "With 422: what is wrong with which record. Nothing of the request was taken.",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "code", "detail"],
                "properties": {
                    "index": {"type": "integer"},
                    "code": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
        "accepted": {"description": "With 503: ids of the records that Kafka has.", **_TEXTS},
        "unknown": {
            "description": "With 503: ids of the records of which Kafka did not say so in time. Send them again with "
            "these ids: should Kafka have one after all, the second one has no effect.",
            **_TEXTS,
        },
    },
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"description": TITLES[status], "content": content}
        if status in (429, 503):
            wait = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}, "required": True}
            found[status]["headers"] = {"Retry-After": wait}
        if status == 401:
            found[status]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}
    return found
