"""The language of what the user said, by py3langid (140 languages, its model is in the package).

A prompt is often short, or code, or formulas: then there is no telling. Under the floor of confidence the language
stays unknown, and what is unknown is never refused.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from streams.records import Message

HEAD_CHARS = 600
"""Of a longer text its beginning decides: the detector walks it byte by byte (about 1 µs each)."""


@cache
def _identifier() -> Any:
    # Here: numpy and the model load while a worker joins its group.
    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    class Identifier(LanguageIdentifier):  # type: ignore[misc]
        """With its table in single precision: numpy converts what it takes of the model's half precision each time,
        which took four fifths of the time of a decision. 28 MB more; the same numbers."""

        def __init__(self, nb_ptc: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(np.asarray(nb_ptc, dtype=np.float32), *arguments, **options)

    # Probabilities instead of raw scores; the module's own function has no way to ask for them.
    return Identifier.from_model_file(MODEL_FILE, norm_probs=True)


class LanguageDetector:
    """The first one of a process loads the model (up to a second of processor time)."""

    def __init__(self, min_confidence: float) -> None:
        self._min_confidence = min_confidence
        self._identifier = _identifier()

    @property
    def codes(self) -> frozenset[str]:
        """ISO 639 codes that it can tell (`zxx` is text that is no language)."""
        return frozenset(self._identifier.labels)

    def detect(self, messages: Sequence[Message]) -> tuple[str | None, float]:
        """The code of the user's language (None when not sure) and how sure it is, 0..1."""
        text = "\n".join(message.content for message in messages if message.role == "user")[:HEAD_CHARS]
        code, confidence = self._identifier.classify(text)
        return (code if confidence >= self._min_confidence else None), float(confidence)
