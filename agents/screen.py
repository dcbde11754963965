"""Cheap first, dear second: which prompts the judge need not see.

A linear model on hashed word n-grams (scikit-learn) learns, from the judge's own ratings as they come, to predict the
next one. A prompt that is predicted to lie under the buffer's threshold by more than nearly all predictions were ever
short of the truth is skipped, once the share of hard prompts that this would have let through is measured and above
the setting. A share of all prompts is judged anyway, chosen by hash, and is what that is measured on.

All of it lives in one process and is learned anew by the next: what is believed was measured there.
"""

import math
from dataclasses import dataclass
from typing import Any

from agents.rules.rank import rank_key
from agents.rules.screening import Margin, Recall, explored
from streams.metrics import Metrics
from streams.records import AcceptedPrompt
from streams.rubric import conversation_text
from streams.settings import BufferSettings, ScreenSettings

MAX_CHARS = 4000
"""Of a prompt are looked at; the rest of a long one is mostly what was pasted."""
FEATURES = 2**16
STEP = 0.3
"""Constant, as judges and prompts change: the best of 0.1, 0.3 and 0.7 on the labelled sets."""
LEARN_EVERY = 32
"""Ratings in one update: scikit-learn's cost is by the call."""


@dataclass(frozen=True)
class Look:
    """What screening makes of one prompt."""

    features: Any
    """Sparse row (1, FEATURES)."""
    predicted: float | None
    """Difficulty; None while too little was learned."""
    margin: float | None
    threshold: float | None
    """The buffer's rank key to beat; None while it has room."""
    sure: bool
    """The prediction and its margin lie under the threshold."""
    skip: bool
    """`sure`, trusted, and not explored: the judge is not asked."""
    counts: bool
    """It is judged whatever the prediction says, so that recall may be measured on it."""


class Screen:
    """The model and what is known about it. `threshold` is set from outside, from time to time."""

    def __init__(self, settings: ScreenSettings, buffer: BufferSettings, metrics: Metrics) -> None:
        # Only a worker that screens imports scikit-learn.
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import SGDRegressor

        self.threshold: float | None = None
        self._settings = settings
        self._half_life_s = buffer.half_life_s
        self._metrics = metrics
        # Punctuation counts: formulas and code are made of it.
        self._vectorizer = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]")
        self._model = SGDRegressor(alpha=1e-6, learning_rate="constant", eta0=STEP, random_state=0)
        self._margin = Margin(settings.quantile, settings.warmup)
        self._recall = Recall(settings.min_recall)
        self._learned = 0
        self._batch: list[tuple[Any, float]] = []

    @property
    def trusted(self) -> bool:
        """Whether its recall is measured and high enough."""
        return self._recall.proven

    def look(self, prompt: AcceptedPrompt) -> Look:
        """Predicts; takes about half a millisecond for 1 kB."""
        text = conversation_text([{"role": m.role, "content": m.content} for m in prompt.messages])
        # The length as a word of its own, in steps of the square root of two.
        features = self._vectorizer.transform([f"{text[:MAX_CHARS]} chars{int(2 * math.log2(len(text) + 1))}"])
        predicted = float(self._model.predict(features)[0]) if self._learned else None
        threshold, margin = self.threshold, self._margin.value
        sure = (
            predicted is not None
            and margin is not None
            and threshold is not None
            and rank_key(max(1.0, predicted + margin), prompt.ts, self._half_life_s) < threshold
        )
        is_explored = explored(prompt.prompt_id, self._settings.explore_share)
        counts = is_explored or not self.trusted
        return Look(features, predicted, margin, threshold, sure, sure and not counts, counts)

    def learn(self, look: Look, prompt: AcceptedPrompt, difficulty: float) -> None:
        """What the judge said about a prompt that was looked at."""
        if look.predicted is not None:
            self._margin.add(look.predicted, difficulty)
        hard = look.threshold is not None and rank_key(difficulty, prompt.ts, self._half_life_s) > look.threshold
        if hard and look.counts and look.margin is not None:
            self._recall.add(not look.sure)
        self._metrics.screen_recall.set(self._recall.value)
        self._metrics.screen_trusted.set(self.trusted)
        self._batch.append((look.features, difficulty))
        if len(self._batch) >= LEARN_EVERY:
            from scipy.sparse import vstack

            features, ratings = zip(*self._batch, strict=True)
            self._model.partial_fit(vstack(features), ratings)
            self._learned += len(self._batch)
            self._batch.clear()
