"""Redaction: made personal data that is found, ordinary prompts that are changed, and what it costs."""

import random
import time

from agents.rules.redact import Redactor
from tests.curation.corpus import corpus
from tests.curation.identifiers import KINDS, SENTENCES

EACH = 500
BLOCK = 1000


def table() -> str:
    """Markdown: recall by kind, spans found in ordinary prompts by kind, microseconds for 1 kB."""
    redactor = Redactor()
    found, ordinary = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    missed: dict[str, str] = {}
    for kind, make in KINDS.items():
        rng = random.Random(kind)
        for _ in range(EACH):
            thing = make(rng)
            text = rng.choice(SENTENCES).format(thing)
            cleaned, counts = redactor.text(text)
            # Whole: nothing of it may stay but what is no secret in it (the name of a variable, the host of a URL).
            whole = counts.get(kind, 0) >= 1 and (
                kind == "secret" or cleaned == text.replace(thing, f"[{kind.upper()}]")
            )
            found[kind] += whole
            if not whole:
                missed.setdefault(kind, thing)
    texts = [text for group in corpus().values() for text in group]
    for text in texts:
        for kind, count in redactor.text(text)[1].items():
            ordinary[kind] += count
    rows = ["| kind | found, of made ones | the first missed | found in ordinary prompts |", "|---|---:|---|---:|"]
    for kind in KINDS:
        first = f"`{missed[kind]}`" if kind in missed else ""
        rows.append(f"| {kind} | {found[kind]} of {EACH} | {first} | {ordinary[kind]} |")
    return "\n".join(rows) + f"\n\n{len(texts)} ordinary prompts. {cost(redactor, texts)}"


def cost(redactor: Redactor, texts: list[str]) -> str:
    """Processor time of redacting 1 kB."""
    whole = "\n".join(texts)
    blocks = [whole[i : i + BLOCK] for i in range(0, min(len(whole), 1000 * BLOCK), BLOCK)]
    started = time.process_time()
    for block in blocks:
        redactor.text(block)
    micros = (time.process_time() - started) / len(blocks) * 1e6
    return f"1,000 characters take {micros:.0f} µs of processor time."
