"""A vLLM that costs nothing and can be told to fail. Answers like the real one where haypile looks (see the contract
tests in `tests/contract/test_vllm.py`, which run over both).

`python -m tests.support.fake_vllm PORT [DELAY_S [ANSWER_DELAY_S]]` serves one; `POST /fault {"kind": …, "count": n}`
fails the next n, `GET /fault` says how many of them are left and how many requests are in progress for each model.
"""

import asyncio
import json
import math
import re
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web

TEXT = re.compile(r"<prompt>\n(.*)\n</prompt>", re.DOTALL)
ANSWER = re.compile(r"<answer>\n(.*)\n</answer>", re.DOTALL)
NOT_WHOLE = "loaded an adapter that is not whole:"
BAND = re.compile(r"Use the ratings ([1-9]) to ([1-9]) only")
"""In a rubric: another rubric, other ratings."""
MAX_CHARS = 20_000
"""Longer requests are answered like those over the context length."""
CONTEXT = 2048
"""Tokens: a request that asks for more than this is over the context length too."""


class FakeVllm:
    """The application. `delay_s` is the time of each request, `answer_delay_s` that of a chat completion and of loading
    an adapter; `ratings` overrides the hash of a text (1..9). An adapter of a registry that is not whole when it is
    loaded is complained of on standard output.
    """

    def __init__(
        self,
        delay_s: float = 0.0,
        models: tuple[str, ...] = ("base", "teacher", "judge"),
        answer_delay_s: float | None = None,
    ) -> None:
        self.delay_s = delay_s
        self.answer_delay_s = delay_s if answer_delay_s is None else answer_delay_s
        self.models = list(models)
        self.adapters: dict[str, str] = {}
        self.ratings: dict[str, int] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        """Model → what it does instead of answering: `text`, `tokens`, `logprob`, `finish_reason`, `as` (another
        model), `status` (an error); `*` is every adapter."""
        self.answered: Counter[tuple[str, str]] = Counter()
        """Requests by path and status group, as vLLM's `/metrics` count them."""
        self.requests = 0
        self.generated = 0
        self.most_at_once = 0
        self._at_once = 0
        self._by_model: Counter[str] = Counter()
        self._fault: dict[str, Any] = {}
        self.app = web.Application(client_max_size=64 * 2**20, middlewares=[self._count])
        self.app.router.add_get("/v1/models", self._models)
        self.app.router.add_get("/health", self._health)
        self.app.router.add_post("/v1/completions", self._completions)
        self.app.router.add_post("/v1/chat/completions", self._chat)
        self.app.router.add_post("/classify", self._classify)
        self.app.router.add_post("/v1/load_lora_adapter", self._load)
        self.app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self.app.router.add_post("/fault", self._set_fault)
        self.app.router.add_get("/fault", self._show_fault)
        self.app.router.add_post("/answers", self._set_answers)
        self.app.router.add_get("/metrics", self._metrics)

    def fault(self, kind: str, count: int) -> None:
        """The next `count` requests fail: `400` `429` `500` `503` `garbage` `half` `empty` `nothing`."""
        self._fault = {"kind": kind, "count": count}

    async def _set_fault(self, request: web.Request) -> web.Response:
        self._fault = await request.json()
        return web.Response()

    async def _show_fault(self, request: web.Request) -> web.Response:
        return web.json_response({"left": self._fault.get("count", 0), "in_progress": self._by_model})

    async def _set_answers(self, request: web.Request) -> web.Response:
        self.answers = await request.json()
        return web.Response()

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        self.answered[request.path, f"{response.status // 100}xx"] += 1
        return response

    async def _metrics(self, request: web.Request) -> web.Response:
        lines = [
            f'http_requests_total{{handler="{path}",method="POST",status="{status}"}} {float(count)}'
            for (path, status), count in self.answered.items()
            if path.startswith("/v1/")
        ]
        gauges = {"running": self._at_once, "waiting": 0}
        for name, value in gauges.items():
            lines += [f"# TYPE vllm:num_requests_{name} gauge", f'vllm:num_requests_{name}{{engine="0"}} {value}']
        # Each of a text's words counts as a token.
        lines.append(f'vllm:generation_tokens_total{{model_name="base"}} {float(self.generated)}')
        for name, value in (("running", self._at_once), ("waiting", 0)):
            gauge = f"vllm:num_requests_{name}"
            lines += [f"# TYPE {gauge} gauge", f'{gauge}{{engine="0"}} {float(value)}']
        return web.Response(text="\n".join(["# TYPE http_requests_total counter", *lines, ""]))

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in [*self.models, *self.adapters]]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, lambda: self._completion_body(body))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, lambda: self._chat_body(body))

    async def _classify(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, lambda: self._classify_body(body))

    async def _answer(self, request: web.Request, body: dict[str, Any], make: Any) -> web.StreamResponse:
        self.requests += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self._by_model[body["model"]] += 1
        delay_s = self.answer_delay_s if "messages" in body else self.delay_s
        try:
            if delay_s:
                await asyncio.sleep(delay_s)
            failed = await self._faulty(request)
            if failed is not None:
                return failed
            if body["model"] not in [*self.models, *self.adapters]:
                return _error(404, f"The model `{body['model']}` does not exist.")
            if status := self._instead(body["model"]).get("status"):
                return _error(status, f"made to fail with {status}")
            if any(len(text) > MAX_CHARS for text in _texts(body)) or (body.get("max_tokens") or 0) > CONTEXT:
                return _error(400, "This model's maximum context length is 2048 tokens.")
            return web.json_response(make())
        finally:
            self._at_once -= 1
            self._by_model[body["model"]] -= 1

    async def _faulty(self, request: web.Request) -> web.StreamResponse | None:
        if not self._fault.get("count"):
            return None
        self._fault["count"] -= 1
        kind = self._fault["kind"]
        if kind.isdigit():
            return _error(int(kind), f"made to fail with {kind}")
        if kind == "garbage":
            return web.Response(text="<html>not json</html>")
        if kind == "empty":
            return web.json_response({"choices": []})
        if kind == "half":
            response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"index": 0, "te')
            assert request.transport is not None
            request.transport.abort()
            return response
        await asyncio.sleep(3600)  # nothing
        return None

    def _completion_body(self, body: dict[str, Any]) -> dict[str, Any]:
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        choices = [self._choice(index, prompt) for index, prompt in enumerate(prompts)]
        self.generated += len(choices)
        return {"choices": choices, "usage": {"prompt_tokens": sum(len(p) // 4 for p in prompts)}}

    def _choice(self, index: int, prompt: str) -> dict[str, Any]:
        found = TEXT.search(prompt)
        text = found.group(1) if found else prompt
        answer = ANSWER.search(prompt)
        asked = text + (answer.group(1) if answer else "") + prompt.rsplit("\n", 1)[-1]
        digest = sha256(asked.encode()).digest()
        if prompt.rstrip(" (").endswith("(A-H):"):
            label, others = "ABCDEFGH"[digest[0] % 8], "ABCDEFGH"
        elif prompt.rstrip(" (").endswith("(A or B):"):
            label, others = "AB"[digest[0] % 2], "AB"
        else:
            band = BAND.search(prompt[: found.start()] if found else "")
            least, most = (int(band[1]), int(band[2])) if band else (1, 9)
            label, others = str(self.ratings.get(text, least + digest[0] % (most - least + 1))), "123456789"
            if "Quality" in prompt.rsplit("\n", 1)[-1]:
                label = "8"
        top = {other: math.log(0.02) for other in others if other != label}
        share = (digest[1] + 256 * digest[2]) / 65536  # makes ties rare, as with a real model
        top[label] = math.log(0.6 + 0.2 * share)
        return {"index": index, "text": label, "logprobs": {"top_logprobs": [top], "tokens": [label]}}

    def _chat_body(self, body: dict[str, Any]) -> dict[str, Any]:
        last = body["messages"][-1]["content"]
        instead = self._instead(body["model"])
        model = instead.get("as", body["model"])
        texts = [instead.get("text", f"{model} answer {i} to: {last[:40]}") for i in range(body.get("n") or 1)]
        self.generated += sum(len(text.split()) for text in texts)
        choices = []
        for index, text in enumerate(texts):
            choice = {"index": index, "message": {"role": "assistant", "content": text}, "logprobs": None}
            choice["finish_reason"] = instead.get("finish_reason", "stop")
            if body.get("logprobs"):
                tokens = instead.get("tokens", re.findall(r"\s*\S+", text))
                logprob = instead.get("logprob", -0.5)
                content = [{"token": token, "logprob": logprob, "top_logprobs": []} for token in tokens]
                choice["logprobs"] = {"content": content}
            choices.append(choice)
        return {"choices": choices}

    def _instead(self, model: str) -> dict[str, Any]:
        return self.answers.get(model) or (self.answers.get("*", {}) if model in self.adapters else {})

    def _classify_body(self, body: dict[str, Any]) -> dict[str, Any]:
        """As vLLM's `entrypoints/pooling/classify` builds it (0.32): a one-label model, -8..8 by the text's hash."""
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        logits = [sha256(text.encode()).digest()[0] / 16 - 8 for text in texts]
        if body.get("use_activation", True):
            logits = [1 / (1 + math.exp(-logit)) for logit in logits]
        data = [
            {"index": index, "label": "LABEL_0", "probs": [logit], "num_classes": 1}
            for index, logit in enumerate(logits)
        ]
        usage = {"prompt_tokens": sum(len(text) // 4 for text in texts)}
        return {
            "id": "classify-1",
            "object": "list",
            "created": 1,
            "model": body["model"],
            "data": data,
            "usage": usage,
        }

    async def _load(self, request: web.Request) -> web.StreamResponse:
        failed = await self._faulty(request)
        if failed is not None:
            return failed
        body = await request.json()
        if body["lora_name"] in self.adapters:
            return _error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        if self.answer_delay_s:
            await asyncio.sleep(self.answer_delay_s)
        if (problem := _not_whole(Path(body["lora_path"]))) is not None:
            print(f"{NOT_WHOLE} {body['lora_path']}: {problem}", flush=True)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text=f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.adapters.pop(body["lora_name"], None) is None:
            return _error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")


def _texts(body: dict[str, Any]) -> list[str]:
    if "messages" in body:
        return [message["content"] for message in body["messages"]]
    if "input" in body:
        return [body["input"]] if isinstance(body["input"], str) else list(body["input"])
    return [body["prompt"]] if isinstance(body["prompt"], str) else list(body["prompt"])


def _not_whole(adapter: Path) -> str | None:
    """What is wrong with a registry's adapter; other folders are not looked at."""
    try:
        digests = json.loads((adapter / "manifest.json").read_bytes())["sha256"]
        wrong = [
            name for name, digest in digests.items() if sha256((adapter / name).read_bytes()).hexdigest() != digest
        ]
    except (OSError, ValueError) as error:
        return f"{error}" if adapter.is_dir() else None
    return f"{', '.join(wrong)} differ from the manifest" if wrong else None


def _error(status: int, message: str) -> web.Response:
    text = json.dumps({"error": {"message": message, "code": status}})
    return web.Response(status=status, text=text, content_type="application/json")


if __name__ == "__main__":
    web.run_app(
        FakeVllm(
            float(sys.argv[2]) if len(sys.argv) > 2 else 0.0,
            answer_delay_s=float(sys.argv[3]) if len(sys.argv) > 3 else None,
        ).app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        print=None,
    )
