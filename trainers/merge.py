"""An adapter merged into its base model: full weights for servers that take no LoRA.

Heavy imports: only the command that merges loads this module's libraries.
"""

import json
from pathlib import Path

from streams.errors import Fatal


def merge(base_model: str, adapter: Path, folder: Path) -> None:
    """Write base model and LoRA as one model (safetensors, config, tokenizer with its chat template) into `folder`.

    In the base model's own dtype: `W + (alpha / r) B A`, added by PEFT's `merge_and_unload` and rounded once. Takes
    the memory of the whole model, on the CPU. Raises `Fatal` when base and adapter cannot be loaded together.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model)
        base = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto", use_safetensors=True)
        model = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise Fatal(f"cannot merge {adapter.name} into {base_model}: {' '.join(str(error).split())[:400]}") from None
    # safe_merge: weights that are not finite are an error, not a model.
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise Fatal(f"cannot merge {adapter.name}: {' '.join(str(error).split())[:400]}") from None
    with torch.no_grad():
        merged.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    _forget_paths(folder / "config.json")


def _forget_paths(config: Path) -> None:
    """The config names the folder that the base model came from, which is nobody's business elsewhere."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
