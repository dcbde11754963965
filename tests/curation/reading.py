"""Language and length: how often the language is told, and how far the estimate of tokens is off."""

import time
from collections import Counter

from agents.rules.language import LanguageDetector
from agents.rules.length import estimate
from deploy.intake import token_counter
from streams.records import Message
from streams.settings import IngestSettings
from tests.curation.corpus import corpus
from tests.support.real_vllm import base_model


def languages() -> str:
    """Markdown: what the detector says of each set."""
    detector = LanguageDetector(IngestSettings().language_confidence)
    rows = ["| set | prompts | en | others | unknown |", "|---|---:|---:|---|---:|"]
    started, chars = time.process_time(), 0
    for name, texts in corpus().items():
        told = Counter(detector.detect([Message("user", text)])[0] for text in texts)
        chars += sum(min(len(text), 600) for text in texts)
        others = ", ".join(f"{code} {count}" for code, count in told.most_common() if code not in ("en", None))
        rows.append(f"| {name} | {len(texts)} | {told['en']} | {others} | {told[None]} |")
    micros = (time.process_time() - started) / chars * 1e6
    return "\n".join(rows) + f"\n\n{micros:.1f} µs a character, of 600 at most."


def tokens() -> str:
    """Markdown: the estimate over the count of SmolLM2's tokenizer, and the same of "characters / 4"."""
    count = token_counter(base_model())
    rows = [
        "| set | estimate / count: median | 5 % | 95 % | characters / 4: median | 5 % | 95 % |",
        "|---|" + "---:|" * 6,
    ]
    for name, texts in corpus().items():
        true = [max(1, count(text)) for text in texts]
        cells = []
        for counted in ([estimate(text) for text in texts], [len(text) / 4 for text in texts]):
            ratios = sorted(a / b for a, b in zip(counted, true, strict=True))
            cells += [ratios[len(ratios) // 2], ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]]
        rows.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(rows)
