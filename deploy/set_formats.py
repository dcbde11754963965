"""In whose columns `haypile buffer export` writes. (Apart: the command's help needs it and nothing heavy.)"""

from enum import StrEnum


class SetFormat(StrEnum):
    """Whose columns."""

    pika = "pika"
    """Magpie's, in which PiKa's sets are made; pairs as in Magpie's DPO sets, with UltraFeedback's scores."""
    sharegpt = "sharegpt"
    """`conversations` and `system`; pairs with one turn a side, as LLaMA-Factory reads them."""
    alpaca = "alpaca"
    """`instruction`, `input`, `output`, `system`, `history`; pairs with `chosen` and `rejected` as text."""
