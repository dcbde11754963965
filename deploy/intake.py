"""What `ingest` judges by, made from the settings: tokenizer, language model, redactor, benchmark prompts."""

from pathlib import Path

from agents.rules.contamination import Contamination
from agents.rules.language import LanguageDetector
from agents.rules.length import CountTokens, estimate
from agents.rules.redact import Redactor
from deploy.benchmarks import benchmark_prompts
from streams.errors import SettingsError
from streams.settings import IngestSettings


def token_counter(path: Path | None) -> CountTokens:
    """Counts with a `tokenizer.json` (the file, or a model's folder that has one); estimates without.

    Raises `SettingsError`.
    """
    if path is None:
        return estimate
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises a bare Exception for a file that is no tokenizer
        raise SettingsError(f"settings: ingest.tokenizer: cannot read {file}: {error}") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def language_detector(settings: IngestSettings) -> LanguageDetector:
    """The detector. Raises `SettingsError` for a language that it cannot tell."""
    detector = LanguageDetector(settings.language_confidence)
    unknown = sorted(set(settings.languages or ()) - detector.codes)
    if unknown:
        raise SettingsError(
            f"settings: ingest.languages: no ISO 639 code of a language that is told: {', '.join(unknown)}"
        )
    return detector


def redactor(settings: IngestSettings) -> Redactor | None:
    """The redactor, None where the settings want none. Raises `SettingsError` for an unknown country."""
    try:
        return Redactor(settings.phone_regions) if settings.redact else None
    except ValueError as error:
        raise SettingsError(f"settings: ingest.phone_regions: {error}") from None


def contamination(settings: IngestSettings) -> Contamination:
    """The n-grams of the benchmark prompts. Raises `SettingsError`."""
    prompts = benchmark_prompts(settings.decontaminate)
    return Contamination(prompts, settings.decontaminate_ngram, settings.decontaminate_overlap)
