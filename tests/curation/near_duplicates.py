"""Near-duplicates: how many made variants are found (recall), how many of the pairs found are variants (precision)."""

import random
import time
from collections.abc import Iterator, Sequence
from itertools import combinations

from streams.buffer.minhash import SLOTS, Sketch, bands_and_rows, needed, shingles, sketch
from streams.settings import BufferSettings
from tests.curation.corpus import corpus, described
from tests.curation.variants import KINDS, variants

THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOWEST = THRESHOLDS[0]


def table() -> str:
    """Markdown: precision and recall for each threshold, then the libraries compared."""
    texts = [text for group in corpus().values() for text in group]
    chosen = BufferSettings().near_duplicate
    rows = [
        "| threshold | precision | recall | " + " | ".join(KINDS) + " |",
        "|---:|---:|---:|" + "---:|" * len(KINDS),
    ]
    for threshold in THRESHOLDS:
        precision, recall, by_kind = measured(texts, threshold)
        cells = " | ".join(f"{by_kind[kind]:.2f}" for kind in KINDS)
        mark = "**" if threshold == chosen else ""
        rows.append(f"| {mark}{threshold}{mark} | {precision:.3f} | {recall:.3f} | {cells} |")
    return f"Over {described()}, one variant of each kind.\n\n" + "\n".join(rows) + "\n\n" + libraries(texts)


def measured(texts: Sequence[str], threshold: float) -> tuple[float, float, dict[str, float]]:
    """Precision and recall of `threshold`, and the recall of each kind of variant.

    Pairs are alike as in the buffer: they share a band and enough slots. Recall: of the variants those alike to their
    original. Precision: of all pairs among originals, and of originals with their own variant of one kind (taken at
    random, as many as there are originals), those that are variants.
    """
    originals = [sketch(text, threshold) for text in texts]
    found, made = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    rng = random.Random(2)
    true_pairs = 0
    for i, text in enumerate(texts):
        others = variants(text, i)
        one = rng.choice(sorted(others)) if others else None
        for kind, variant in others.items():
            made[kind] += 1
            if is_alike(originals[i], sketch(variant, threshold), threshold):
                found[kind] += 1
                true_pairs += kind == one
    false_pairs = sum(1 for _ in pairs(originals, threshold))
    precision = true_pairs / (true_pairs + false_pairs) if true_pairs else 0.0
    recall = sum(found.values()) / sum(made.values())
    return precision, recall, {kind: found[kind] / made[kind] if made[kind] else 0.0 for kind in KINDS}


def is_alike(a: Sketch, b: Sketch, threshold: float) -> bool:
    """As in the buffer."""
    from streams.buffer.minhash import alike

    return alike(a, b, threshold)


def pairs(sketches: Sequence[Sketch], threshold: float) -> Iterator[tuple[int, int]]:
    """All alike pairs, found through their bands."""
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for i, made in enumerate(sketches):
        for at in range(0, len(made.bands), 4):
            buckets.setdefault((at, made.bands[at : at + 4]), []).append(i)
    candidates = {pair for members in buckets.values() for pair in combinations(members, 2)}
    for i, j in candidates:
        if sum(x == y for x, y in zip(sketches[i].slots, sketches[j].slots, strict=True)) >= needed(threshold):
            yield i, j


def libraries(texts: Sequence[str], count: int = 400) -> str:
    """Markdown: MinHash by rensa and by datasketch of the same shingles, and how far each is from the similarity."""
    from datasketch import MinHash
    from rensa import RMinHash

    chosen = [text for text in texts if len(text) > 200][:count]
    prepared = [(shingles(text), shingles(variants(text, i).get("typos", text))) for i, text in enumerate(chosen)]

    def by_rensa(parts: list[str]) -> object:
        made = RMinHash(SLOTS, 42)
        made.update(parts)
        return made

    def by_datasketch(parts: list[str]) -> object:
        made = MinHash(num_perm=SLOTS, seed=42)
        made.update_batch([part.encode() for part in parts])
        return made

    rows = ["| library | µs for a prompt | mean error of the similarity | largest |", "|---|---:|---:|---:|"]
    for name, make in (("rensa", by_rensa), ("datasketch", by_datasketch)):
        started = time.process_time()
        made = [(make(a), make(b)) for a, b in prepared]
        micros = (time.process_time() - started) / (2 * len(made)) * 1e6
        errors = []
        for (a, b), (left, right) in zip(prepared, made, strict=True):
            true = len(set(a) & set(b)) / len(set(a) | set(b))
            errors.append(abs(left.jaccard(right) - true))  # type: ignore[attr-defined]
        rows.append(f"| {name} | {micros:.0f} | {sum(errors) / len(errors):.3f} | {max(errors):.2f} |")
    bands, width = bands_and_rows(BufferSettings().near_duplicate or LOWEST)
    return f"{len(chosen)} prompts of over 200 characters, {SLOTS} slots ({bands} bands of {width}):\n\n" + "\n".join(
        rows
    )
