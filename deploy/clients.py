"""vLLM clients as the settings describe them, for commands."""

from streams.settings import AnswerSettings, JudgeSettings, ServingSettings, Settings
from streams.vllm import VllmPool


def judge_pool(settings: Settings, timeout_s: float | None = None) -> VllmPool:
    """The judge's servers."""
    return _pool(settings.judge, settings.judge.concurrency, timeout_s)


def teacher_pool(settings: Settings, timeout_s: float | None = None) -> VllmPool:
    """The teacher's servers."""
    return _pool(settings.answer, settings.answer.concurrency, timeout_s)


def serving_pool(settings: Settings, timeout_s: float | None = None, concurrency: int = 8) -> VllmPool:
    """The servers of the trained model. Few requests at once: users have precedence."""
    return _pool(settings.serving, concurrency, timeout_s)


def reward_pool(settings: Settings) -> VllmPool:
    """The servers that rate answers: the judge's, or a reward model's."""
    urls = settings.reward.urls if settings.reward.kind == "classifier" else []
    section = settings.judge.model_copy(update={"urls": urls}) if urls else settings.judge
    return _pool(section, section.concurrency, None)


def _pool(
    section: JudgeSettings | AnswerSettings | ServingSettings, concurrency: int, timeout_s: float | None
) -> VllmPool:
    key = section.api_key.get_secret_value() if section.api_key else None
    return VllmPool(section.urls, api_key=key, concurrency=concurrency, timeout_s=timeout_s or section.timeout_s)
