"""The ops of our vLLM plugin against the definition, token by token."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deploy.local import vllm

SLOTS, OUT, IN, TOKENS = 3, 5, 7, 11


@pytest.fixture(scope="module")
def ops() -> ModuleType:
    spec = importlib.util.spec_from_file_location("haypile_cpu_lora", vllm.PLUGIN / "haypile_cpu_lora.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(inputs: torch.Tensor, weights: torch.Tensor, indices: list[int]) -> torch.Tensor:
    rows = [weights[i] @ x if i >= 0 else torch.zeros(weights.shape[1]) for x, i in zip(inputs, indices, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("indices", [[0] * TOKENS, [-1] * TOKENS, [2, -1, 0, 0, 1, -1, 2, 2, 1, 0, -1]])
def test_products_are_those_of_each_token(ops: ModuleType, indices: list[int]) -> None:
    torch.manual_seed(0)
    weights, inputs = torch.randn(SLOTS, 1, OUT, IN), torch.randn(TOKENS, IN)
    want = expected(inputs, weights.squeeze(1), indices)
    at = torch.tensor(indices)

    shrunk = torch.full((TOKENS, OUT), 9.0)
    ops.bgmv_shrink(inputs, weights, shrunk, at, 2.0)
    torch.testing.assert_close(shrunk, 2.0 * want)

    expanded = torch.ones(TOKENS, OUT + 2)
    ops.bgmv_expand(inputs, weights, expanded, at, True)
    torch.testing.assert_close(expanded[:, :OUT], 1.0 + want)
    assert (expanded[:, OUT:] == 1).all()

    sliced = torch.ones(TOKENS, OUT + 4)
    ops.bgmv_expand_slice(inputs, weights, sliced, at, 3, OUT, True)
    torch.testing.assert_close(sliced[:, 3 : 3 + OUT], 1.0 + want)
    assert (sliced[:, :3] == 1).all()
    assert (sliced[:, 3 + OUT :] == 1).all()

    replaced = torch.full((TOKENS, OUT), 9.0)
    ops.bgmv_expand(inputs, weights, replaced, at, False)
    torch.testing.assert_close(replaced, want)


def test_vllm_finds_it_by_its_metadata() -> None:
    [metadata] = Path(vllm.PLUGIN).glob("*.dist-info")
    assert "[vllm.general_plugins]" in (metadata / "entry_points.txt").read_text()
    assert vllm.ENVIRON["PYTHONPATH"] == str(vllm.PLUGIN)
