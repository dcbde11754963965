"""The local vLLM: its CPU build in a venv of its own, serving the base model, the teacher and the demo's judge."""

import hashlib
import http.client
from collections.abc import Mapping
from pathlib import Path

import trainers
from deploy.local.processes import Child
from streams.errors import Fatal
from streams.settings import Settings

JUDGE = Path(trainers.__file__).parent / "judges" / "demo"
"""The judge's LoRA for SmolLM2-135M that comes with haypile."""

CONTEXT = 2048
"""Tokens of a request. More than the demo's prompts and answers need; less memory for each."""

MAX_LORAS = 4
"""In one batch: the judge, the champion, the challenger, and one that is being unloaded."""

PLUGIN = Path(__file__).parent / "vllm_plugin"
"""Makes LoRA on the CPU fast, and right in mixed batches; see its docstring."""

ENVIRON = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    # Nothing leaves the machine: no usage statistics, no look-ups at the hub.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # Of our paths vLLM's Python sees this one only.
    "PYTHONPATH": str(PLUGIN),
    # Threads wait asleep and are bound to no core: spinning ones starve, and are starved by, the worker and trainer
    # on the same two cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "KMP_BLOCKTIME": "0",
    "OMP_WAIT_POLICY": "passive",
}


def start(settings: Settings, model: Path, port: int, log: Path, environ: Mapping[str, str]) -> Child:
    """Starts it on 127.0.0.1 with `model` as `serving.model` and `answer.model`.

    `judge.model` is the demo's LoRA on SmolLM2-135M; on a model of the user's own it is that model, unadapted.
    """
    python = settings.local.vllm_python
    if not python.exists():
        raise Fatal(
            f"vLLM's Python is not at {python}: `make setup` makes it, or set local.vllm_python, "
            "or set judge.urls, answer.urls and serving.urls to servers that run"
        )
    names = [settings.serving.model, settings.answer.model]
    if settings.local.model is not None:
        names.append(settings.judge.model)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", *dict.fromkeys(names), "--host", "127.0.0.1", "--port", str(port)]
    # Blocks of 32 tokens: the smallest that the CPU build takes; at its default of 128 short texts never hit the cache.
    command += ["--dtype", _dtype(), "--max-model-len", str(CONTEXT), "--block-size", "32", "--enforce-eager"]
    command += ["--enable-lora", "--max-loras", str(MAX_LORAS), "--max-cpu-loras", str(2 * MAX_LORAS)]
    if settings.judge.model not in names:
        command += ["--lora-modules", f"{settings.judge.model}={JUDGE}"]
    threads = {"VLLM_CPU_KVCACHE_SPACE": str(settings.local.vllm_kv_cache_gib)}
    return Child("vllm", command, log, environ={**environ, **ENVIRON, **threads}, grace_s=8)


def ready(port: int) -> bool:
    """Whether its engine answers (`/health` is 200)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _dtype() -> str:
    """bfloat16 where the CPU multiplies it; elsewhere it is emulated, and float32 generates 2.5 times faster (measured
    on an AVX2 machine)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def judge_revision() -> str:
    """Digest of the judge's weights, for `judge.revision`: 12 hex digits."""
    try:
        return hashlib.sha256((JUDGE / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise Fatal(f"the demo's judge cannot be read: {error}") from None
