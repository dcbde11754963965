"""Which prompts are set aside for evaluation."""

from streams.records import Split


def split(prompt_id: str, eval_share: float) -> Split:
    """`eval` for a share of all prompts, by hash: the same prompt is always on the same side, whoever sends it."""
    return "eval" if int(prompt_id[:8], 16) < eval_share * 2**32 else "train"
