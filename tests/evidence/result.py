"""The table: what each arm's models have learned, and by how much the curated one differs. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

Losses = Sequence[Sequence[float]]
"""By seed, then by held-out prompt."""


def gain(curated: Losses, other: Losses, seed: int = 0) -> tuple[float, float, float]:
    """How much lower the curated arm's loss is (nats a token, mean over seeds and prompts), with its 95 % interval.

    Percentile bootstrap over seeds and over prompts at once; the same prompt and the same seed stay paired.
    """
    differences: NDArray[np.float64] = np.asarray(other, float) - np.asarray(curated, float)
    draw = np.random.default_rng(seed)
    seeds, prompts = differences.shape
    means = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        rows = draw.integers(seeds, size=seeds)
        columns = draw.integers(prompts, size=prompts)
        means[n] = differences[np.ix_(rows, columns)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


def wins(curated: Losses, other: Losses) -> float:
    """Share of held-out prompts on which the curated arm's loss, mean over seeds, is lower."""
    differences: NDArray[np.float64] = np.asarray(other, float).mean(0) - np.asarray(curated, float).mean(0)
    return float((differences > 0).mean())


def table(base: dict[str, Sequence[float]], arms: dict[str, dict[str, Losses]]) -> str:
    """Markdown. `base`: set → losses of the untrained model; `arms`: arm → set → losses. The first arm is curated."""
    first = next(iter(arms))
    rows = [
        "| trained on | " + " | ".join(f"loss, {name} | {first} is lower by | {first} wins" for name in base) + " |",
        "|---|" + "---:|" * (3 * len(base)),
        "| nothing | " + " | ".join(f"{np.mean(values):.4f} | | " for values in base.values()) + " |",
    ]
    for arm, sets in arms.items():
        cells = []
        for name in base:
            cells.append(f"{np.mean(np.asarray(sets[name])):.4f}")
            if arm == first:
                cells += ["", ""]
            else:
                mean, low, high = gain(arms[first][name], sets[name])
                cells += [f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]", f"{wins(arms[first][name], sets[name]):.0%}"]
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(rows)
