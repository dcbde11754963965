"""A plugin for vLLM's CPU build (entry point `vllm.general_plugins`): LoRA products without copying weights.

vLLM 0.32's fallback ops (`vllm/lora/ops/torch_ops`) index the adapters' weights by token, which

* copies the weights of every LoRA layer once a token: the judge took about one processor second for 42 tokens;
* reads index -1 ("no adapter") as the last slot, so that a request to the base model in a batch with a request to an
  adapter gets that adapter when it is in the last slot (vLLM pull request #48421, open).

Here the tokens of one adapter are multiplied together, and those without an adapter get zero. Same signatures, same
results for valid indices. vLLM's Python finds the plugin because its folder, with the metadata beside it, is on
PYTHONPATH; it runs in vLLM's processes only. Remove it when a pinned vLLM has both repaired.
"""

import torch


def lora_products(
    inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """`out[t] = weights[indices[t]] @ inputs[t]`, zero where the index is negative; None when all are.

    inputs (tokens, in), weights (slots, out, in) or (slots, 1, out, in), indices (tokens,) → (tokens, out) of `dtype`.
    """
    low, high = (int(end) for end in torch.aminmax(indices))
    if high < 0:
        return None
    if weights.dim() == 4:
        weights = weights.squeeze(1)
    inputs = inputs.to(dtype)
    if low == high:
        return inputs @ weights[low].to(dtype).T
    products = torch.zeros(inputs.shape[0], weights.shape[1], dtype=dtype)
    for slot in torch.unique(indices).tolist():
        if slot >= 0:
            rows = (indices == slot).nonzero().squeeze(1)
            products[rows] = inputs[rows] @ weights[slot].to(dtype).T
    return products


def _write(target: torch.Tensor, products: torch.Tensor | None, add: bool) -> None:
    if products is None:
        if not add:
            target.zero_()
    elif add:
        target += products
    else:
        target.copy_(products)


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """`output[:, :rank] = scaling · A x`."""
    products = lora_products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    rank = lora_b_weights.shape[-2]
    _write(output_tensor[:, :rank], None if products is None else scaling * products, add=False)


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """`output += B x` (or `=`), over the columns that both have: adapter and model may be padded differently."""
    products = lora_products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    columns = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    _write(output_tensor[:, :columns], None if products is None else products[:, :columns], add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """`output[:, offset:offset + size] += B x` (or `=`)."""
    products = lora_products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    _write(output_tensor[:, slice_offset : slice_offset + slice_size], products, add_inputs)


def register() -> None:
    """Called by vLLM in each of its processes, before the model is built."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for op in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        setattr(lora_ops, op.__name__, op)  # for the sgmv_* ops, which call these
        setattr(punica_cpu, op.__name__, op)
