"""What a model has learned: its loss on the answers of prompts that no arm was offered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.evidence.stream import Prompt


def losses(base: Path | str, adapter: Path | None, prompts: Sequence[Prompt], recipe: Any) -> list[float]:
    """Nats a token of each answer, given its prompt under the chat template; of the base model without an adapter.

    A row over `sft.max_length` is cut there, for all arms alike.
    """
    import torch
    from peft import PeftModel

    from trainers.phase import load_base, load_tokenizer

    device = "cpu" if recipe.device == "cpu" or not torch.cuda.is_available() else "cuda"
    tokenizer: Any = load_tokenizer(str(base))
    model = load_base(str(base), recipe)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model = model.to(device).eval()
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            asked = [{"role": "user", "content": prompt.text}]
            answered = [*asked, {"role": "assistant", "content": prompt.answer}]
            start = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))
            ids = tokenizer.apply_chat_template(answered, return_dict=False)[: recipe.sft.max_length]
            tokens = torch.tensor([ids], device=device)
            logits = model(tokens).logits[0, start - 1 : -1].float()
            found.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, start:])))
    return found
