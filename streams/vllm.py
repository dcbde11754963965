"""The vLLM client: several servers of the same models, bounded requests in flight, errors named by what to do.

One pool serves one purpose (judge, teacher, serving). A request goes to the server with the fewest requests in flight;
a server that fails is left alone by its circuit breaker and the others take over. Retries are the caller's: `Transient`
means that the record has to wait, and the ordered window turns that into backpressure.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from streams.breaker import Breaker
from streams.errors import Fatal, HaypileError, Transient

_HTTP_REQUESTS = re.compile(
    r'^http_requests_total\{handler="(?P<handler>[^"]*)",method="[A-Z]+",status="(?P<status>[^"]*)"\} (?P<value>\S+)$',
    re.MULTILINE,
)
"""As prometheus-fastapi-instrumentator counts them, which vLLM uses; `status` is a group: `2xx`, `5xx`."""


class TooLong(HaypileError):
    """The prompt does not fit the model's context (vLLM answers 400): shorten it."""


class BadRequest(HaypileError):
    """vLLM refuses this request for another reason (400, 413, 422): repeating it will not help."""


@dataclass(frozen=True)
class Completion:
    """One completion: its text and, where asked for, the log-probabilities of the first token's alternatives."""

    text: str
    top_logprobs: Mapping[str, float]
    prompt_tokens: int
    """Of all prompts of the request together."""


@dataclass(frozen=True)
class ChatAnswer:
    """One chat answer with what vLLM says of each of its tokens."""

    text: str
    finish_reason: str
    """`stop`, `length`, …"""
    tokens: Sequence[str]
    logprobs: Sequence[float]
    """Of the tokens; NaN where vLLM gives none."""


class _Server:
    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        self.breaker = Breaker()


class VllmPool:
    """Client of one or more vLLM servers that serve the same models.

    `concurrency` is the bound of requests in flight for each server, `timeout_s` that of one request. Use it as an
    async context manager. Raises `Transient` (down, busy, slow, an answer that is no answer), `TooLong`, `BadRequest`
    and `Fatal` (wrong key, unknown model).
    """

    def __init__(
        self, urls: Sequence[str], *, api_key: str | None = None, concurrency: int = 32, timeout_s: float = 30
    ) -> None:
        self._servers = [_Server(url.rstrip("/")) for url in urls]
        self._slots = asyncio.Semaphore(concurrency * len(self._servers))
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 5))
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def urls(self) -> list[str]:
        """The servers, in the order of the settings."""
        return [server.url for server in self._servers]

    def open_for_s(self) -> dict[str, float]:
        """Servers whose circuit is open, and for how long (seconds)."""
        now = time.monotonic()
        since = {server.url: server.breaker.open_since for server in self._servers}
        return {url: now - opened for url, opened in since.items() if opened is not None}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, headers=self._headers, connector=aiohttp.TCPConnector(limit=0)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def completions(
        self,
        prompts: Sequence[str],
        *,
        model: str,
        max_tokens: int = 1,
        temperature: float = 0.0,
        logprobs: int | None = 20,
    ) -> list[Completion]:
        """One completion for each prompt, in order (`POST /v1/completions`). `logprobs` alternatives, 20 at most."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(prompts),
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if logprobs is not None:
            body["logprobs"] = logprobs
        answer = await self._post("/v1/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            if len(choices) != len(prompts):
                raise ValueError(f"{len(choices)} choices for {len(prompts)} prompts")
            tokens = int((answer.get("usage") or {}).get("prompt_tokens", 0))
            return [Completion(str(c["text"]), _first_logprobs(c.get("logprobs")), tokens) for c in choices]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise Transient(f"vLLM's completion is not readable ({error!r})") from None

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int | None = 512,
        seed: int | None = None,
    ) -> list[str]:
        """`n` answers to an OpenAI chat list (`POST /v1/chat/completions`), of `max_tokens` at most (null: what the
        context leaves)."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "n": n,
            "temperature": temperature,
            "top_p": top_p,
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if seed is not None:
            body["seed"] = seed
        answer = await self._post("/v1/chat/completions", body)
        try:
            return [str(choice["message"]["content"] or "") for choice in answer["choices"]]
        except (KeyError, TypeError) as error:
            raise Transient(f"vLLM's chat completion is not readable ({error!r})") from None

    async def inspect(
        self, url: str, messages: Sequence[Mapping[str, str]], *, model: str, max_tokens: int
    ) -> ChatAnswer:
        """The greedy answer of one server with the log-probability of each token, past the circuit breaker."""
        body = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "logprobs": True,
        }
        answer = await self._call("POST", url, "/v1/chat/completions", body)
        try:
            [choice] = answer["choices"]
            content = (choice["logprobs"] or {}).get("content") or []
            return ChatAnswer(
                text=str(choice["message"]["content"] or ""),
                finish_reason=str(choice["finish_reason"]),
                tokens=[str(token["token"]) for token in content],
                logprobs=[math.nan if token["logprob"] is None else float(token["logprob"]) for token in content],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Transient(f"vLLM's chat completion is not readable ({error!r})") from None

    async def classify(self, texts: Sequence[str], *, model: str) -> list[float]:
        """The reward of each text by a reward model (`POST /classify` of `--runner pooling --convert classify`).

        The reward is the only output of a one-label model as the model gives it (vLLM's default puts a sigmoid over it,
        under which good answers tie at 1), the last label's probability otherwise.
        """
        answer = await self._post("/classify", {"model": model, "input": list(texts), "use_activation": False})
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            rewards = [_last_label([float(logit) for logit in row["probs"]]) for row in rows]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Transient(f"vLLM's classification is not readable ({error!r})") from None
        if len(rewards) != len(texts):
            raise Transient(f"vLLM classified {len(rewards)} of {len(texts)} texts")
        return rewards

    async def models(self, url: str) -> list[str]:
        """Names that the server at `url` serves, adapters included."""
        answer = await self._call("GET", url, "/v1/models", None)
        try:
            return [str(model["id"]) for model in answer["data"]]
        except (KeyError, TypeError) as error:
            raise Transient(f"{url}/v1/models is not readable ({error!r})") from None

    async def answered(self, url: str) -> tuple[int, int] | None:
        """Requests that the server at `url` has answered since it started, and how many of them with a 5xx; None when
        its `/metrics` do not tell (vLLM's `http_requests_total`)."""
        text = await self._text("GET", url, "/metrics", None)
        counts = [
            (float(found["value"]), found["status"].startswith("5"))
            for found in _HTTP_REQUESTS.finditer(text)
            if found["handler"].startswith("/v1/")
        ]
        if "http_requests_total" not in text:
            return None
        return int(sum(value for value, _ in counts)), int(sum(value for value, failed in counts if failed))

    async def load_adapter(self, url: str, name: str, path: str) -> None:
        """Load the LoRA folder `path` under `name` on one server; one that is loaded already is fine."""
        body = {"lora_name": name, "lora_path": path}
        try:
            await self._call("POST", url, "/v1/load_lora_adapter", body)
        except BadRequest as error:
            if "already" not in str(error):
                raise

    async def unload_adapter(self, url: str, name: str) -> None:
        """Unload an adapter from one server; one that is not there is fine."""
        try:
            await self._call("POST", url, "/v1/unload_lora_adapter", {"lora_name": name})
        except (BadRequest, Fatal) as error:
            if "not found" not in str(error).lower() and "cannot be found" not in str(error).lower():
                raise

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send to the least busy server whose breaker allows it. Each is tried once, then `Transient`."""
        async with self._slots:
            tried: list[_Server] = []
            while True:
                server = self._pick(tried)
                tried.append(server)
                try:
                    return await self._try(server, path, body)
                except Transient:
                    if len(tried) == len(self._servers):
                        raise

    def _pick(self, tried: Sequence[_Server]) -> _Server:
        now = time.monotonic()
        left = [server for server in self._servers if server not in tried and server.breaker.allows(now)]
        if not left:
            raise Transient(f"vLLM at {', '.join(self.urls)} failed and rests before the next probe")
        return min(left, key=lambda server: server.in_flight)

    async def _try(self, server: _Server, path: str, body: Mapping[str, Any]) -> Any:
        server.in_flight += 1
        probe = server.breaker.began()
        try:
            answer = await self._call("POST", server.url, path, body)
        except Transient:
            server.breaker.failed(time.monotonic(), probe)
            raise
        except HaypileError:  # it refuses this request: it lives
            server.breaker.worked()
            raise
        except BaseException:
            server.breaker.gave_up(probe)
            raise
        finally:
            server.in_flight -= 1
        server.breaker.worked()
        return answer

    async def _call(self, method: str, url: str, path: str, body: Mapping[str, Any] | None) -> Any:
        return _parse(url, await self._text(method, url, path, body))

    async def _text(self, method: str, url: str, path: str, body: Mapping[str, Any] | None) -> str:
        if self._session is None:
            raise RuntimeError("VllmPool is used outside of its context")
        try:
            async with self._session.request(method, f"{url}{path}", json=body) as response:
                text = await response.text(errors="replace")
                status = response.status
        except TimeoutError:
            raise Transient(f"vLLM at {url} did not answer in {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"vLLM at {url} is not reachable ({error})") from None
        if status != 200:
            raise _error(url, path, status, text)
        return text


def _last_label(logits: Sequence[float]) -> float:
    """One output is itself; of several, the softmax of the last."""
    highest = max(logits)  # ValueError when there is none
    if len(logits) == 1:
        return logits[0]
    weights = [math.exp(logit - highest) for logit in logits]
    return weights[-1] / sum(weights)


def _parse(url: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if text.startswith("Success"):  # what the adapter endpoints answer
            return {}
        raise Transient(f"vLLM at {url} answered with something that is not JSON") from None


def _error(url: str, path: str, status: int, text: str) -> HaypileError:
    """What an answer that is not 200 means for the caller."""
    message = _message(text)
    if status in (401, 403):
        return Fatal(f"vLLM at {url} refuses our key ({status}); set the section's API_KEY in the environment")
    if status == 404:
        return Fatal(f"vLLM at {url}{path}: {message}")
    if status in (400, 413, 422):
        lower = message.lower()
        too_long = "maximum context length" in lower or "max_model_len" in lower or "longer than the maximum" in lower
        return (TooLong if too_long else BadRequest)(f"vLLM at {url}: {message}")
    return Transient(f"vLLM at {url} answered {status}: {message}")


def _message(text: str) -> str:
    try:
        error = json.loads(text)
        found = error.get("error", error)
        message = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, AttributeError):
        message = text
    return " ".join(str(message).split())[:300]


def _first_logprobs(logprobs: Any) -> dict[str, float]:
    """Alternatives of the first generated token: token string → log-probability."""
    if not logprobs or not logprobs.get("top_logprobs"):
        return {}
    first = logprobs["top_logprobs"][0] or {}
    return {str(token): float(value) for token, value in first.items()}
