"""What the demo's judge says of texts: SmolLM2 with its adapter, in this process; half a second a text on two cores.

Ratings are kept beside the environments, by the adapter's weights.
"""

import hashlib
import json
import os
from collections.abc import Sequence

from tests.curation.corpus import ROOT

ADAPTER = ROOT / "trainers/judges/demo"
MAX_CHARS = 600
"""The judge sees this much of a prompt, as in its training."""
AT_ONCE = 200
"""Texts between two writings of the file: an interrupted command goes on from there."""


def difficulties(texts: Sequence[str]) -> list[float]:
    """The judge's difficulty of each text, 1..9."""
    weights = hashlib.sha256((ADAPTER / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]
    kept = ROOT / "var/curation" / f"ratings-{weights}-{MAX_CHARS}.json"
    known: dict[str, float] = dict(json.loads(kept.read_text("utf-8"))) if kept.exists() else {}
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    if missing:
        from streams.rubric import Question
        from trainers.base_model import prepare_smollm2
        from trainers.judge import Judge

        judge = Judge.load(prepare_smollm2(ROOT / "var/local/base"), ADAPTER)
        for start in range(0, len(missing), AT_ONCE):
            some = missing[start : start + AT_ONCE]
            found = judge.rate(some, [Question.difficulty], MAX_CHARS)
            known |= {text: r[Question.difficulty].value for text, r in zip(some, found, strict=True)}
            kept.parent.mkdir(parents=True, exist_ok=True)
            scratch = kept.with_suffix(".tmp")
            scratch.write_text(json.dumps(list(known.items())), "utf-8")
            os.replace(scratch, kept)
    return [known[text] for text in texts]
