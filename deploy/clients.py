"""vLLM clients as the settings describe them, for commands."""

from streams.settings import AnswerSettings, JudgeSettings, ServingSettings, Settings
from streams.vllm import VllmPool


def judge_pool(settings: Settings, timeout_s: float | None = None) -> VllmPool:
    """The judge's servers."""
    return _pool(settings.judge, settings.judge.concurrency, timeout_s)


def teacher_pool(settings: Settings, timeout_s: float | None = None) -> VllmPool:
    """The teacher's servers."""
    return _pool(settings.answer, settings.answer.concurrency, timeout_s)


def serving_pool(settings: Settings, timeout_s: float | None = None) -> VllmPool:
    """The servers of the trained model. Few requests at once: users have precedence."""
    return _pool(settings.serving, 8, timeout_s)


def _pool(
    section: JudgeSettings | AnswerSettings | ServingSettings, concurrency: int, timeout_s: float | None
) -> VllmPool:
    key = section.api_key.get_secret_value() if section.api_key else None
    return VllmPool(section.urls, api_key=key, concurrency=concurrency, timeout_s=timeout_s or section.timeout_s)
