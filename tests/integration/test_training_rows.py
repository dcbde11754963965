"""What TRL makes of our rows: on which tokens there is a loss, what packing does, and what DPO is held to.

On a tiny model with SmolLM2's real chat template and special tokens; nothing is trained but where it says so.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_vllm import base_model
from tests.support.training import quick_recipe, random_adapter, tiny_model
from trainers.dataset import TrainingSet, Turns
from trainers.recipe import Recipe
from trainers.rundir import Plan

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

import trl  # noqa: E402
from peft import PeftModel  # noqa: E402

from trainers import dpo, phase, sft  # noqa: E402

PROMPTS: list[Turns] = [
    [{"role": "user", "content": "What is 2 plus 3?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river in France."}],
    [
        {"role": "user", "content": "Say a word."},
        {"role": "assistant", "content": "Earlier answers are part of the prompt."},
        {"role": "user", "content": "Another one,\n\nplease: 12 words at least."},
    ],
]
GOOD = ["The sum is 5.", "The Loire.", "Haystacks dry in the wind\nwhile the pika sings of summer."]
BAD = ["No.", "I do not know which", "Word"]


def quick(**changes: dict[str, Any]) -> Recipe:
    """With room for the rows, which are long in the few tokens of the tiny model."""
    return quick_recipe(**changes | {name: {"max_length": 512} | changes.get(name, {}) for name in ("sft", "dpo")})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(base_model(), tmp_path_factory.mktemp("tiny"), tokens=1000)


def answer(text: str) -> Turns:
    return [{"role": "assistant", "content": text}]


def rows() -> TrainingSet:
    return TrainingSet(
        sft=[{"prompt": p, "completion": answer(a)} for p, a in zip(PROMPTS, GOOD, strict=True)],
        pairs=[
            {"prompt": p, "chosen": answer(a), "rejected": answer(b)}
            for p, a, b in zip(PROMPTS, GOOD, BAD, strict=True)
        ],
    )


def plan(model: Path, recipe: Recipe, **adapters: str | None) -> Plan:
    return Plan(snapshot="-", base_model=str(model), recipe=recipe, **adapters)


def with_template(model: Path, template: str, folder: Path) -> Path:
    """The tiny model with the chat template of another family that marks turns by the same tokens."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if template != "own":
        text = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
        (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.mark.parametrize("template", ["own", "qwen2_5"])
def test_the_loss_is_on_the_answers_tokens_and_on_no_other(tmp_path: Path, tiny: Path, template: str) -> None:
    model = with_template(tiny, template, tmp_path / "model")
    trainer = sft.make_trainer(plan(model, quick()), rows(), tmp_path / "sft", tmp_path / "curve")
    tokenizer = phase.load_tokenizer(str(model))
    found = {}
    for example in trainer.train_dataset:
        ids, labels = example["input_ids"], example["labels"]
        start = next(i for i, label in enumerate(labels) if label != -100)
        assert labels[start:] == ids[start:], "from the answer's first token to the end of its turn"
        found[tokenizer.decode(ids[:start])] = tokenizer.decode(ids[start:])
    assert found == {
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False): f"{text}<|im_end|>\n"
        for prompt, text in zip(PROMPTS, GOOD, strict=True)
    }

    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(mean_loss(trainer.model, tokenizer, PROMPTS, GOOD), rel=1e-4)


def mean_loss(model: Any, tokenizer: Any, prompts: list[Turns], answers: list[str]) -> float:
    """Mean over all answer tokens of -log p, each row by itself."""
    losses = [logps(model, tokenizer, p, answer(a)) for p, a in zip(prompts, answers, strict=True)]
    return -float(torch.cat(losses).mean())


def logps(model: Any, tokenizer: Any, prompt: Turns, completion: Turns) -> Any:
    """Log-probabilities of a completion's tokens, its end of turn included."""
    head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(prompt + completion, return_dict=False)
    assert ids[: len(head)] == head
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, torch.tensor(ids[1:])[:, None])[len(head) - 1 :, 0]


def test_packed_rows_do_not_see_each_other_and_keep_their_labels(tmp_path: Path, tiny: Path) -> None:
    recipe = quick(sft={"packing": True, "max_length": 512})
    trainer = sft.make_trainer(plan(tiny, recipe), rows(), tmp_path / "sft", tmp_path / "curve")
    [packed] = trainer.train_dataset
    assert sorted(packed["seq_lengths"]) == sorted(
        len(phase.load_tokenizer(str(tiny)).apply_chat_template(p + answer(a), return_dict=False))
        for p, a in zip(PROMPTS, GOOD, strict=True)
    )
    batch = trainer.data_collator([packed])
    loss = trainer.compute_loss(trainer.model, batch).item()
    tokenizer = phase.load_tokenizer(str(tiny))
    assert loss == pytest.approx(mean_loss(trainer.model, tokenizer, PROMPTS, GOOD), rel=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_the_end_of_the_longest_row_is_never_cut(tmp_path: Path, tiny: Path, packing: bool) -> None:
    """`max_length` of our rows is what TRL counts too: a row of just that length is whole."""
    tokenizer = phase.load_tokenizer(str(tiny))
    longest = max(
        len(tokenizer.apply_chat_template(p + answer(a), return_dict=False)) for p, a in zip(PROMPTS, GOOD, strict=True)
    )
    recipe = quick(sft={"max_length": longest, "packing": packing})
    trainer = sft.make_trainer(plan(tiny, recipe), rows(), tmp_path / "sft", tmp_path / "curve")
    text = "".join(tokenizer.decode(example["input_ids"]) for example in trainer.train_dataset)
    assert all(f"{a}<|im_end|>\n" in text for a in GOOD)


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters that differ from each other and from none."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: random_adapter(tiny, folder / name, seed) for seed, name in enumerate(("sft", "parent", "champion"))}


@pytest.fixture(scope="module")
def said(tiny: Path, adapters: dict[str, Path]) -> dict[str, list[list[float]]]:
    """What the base and each adapter say of the good and the bad answers: sums of log-probabilities."""
    tokenizer = phase.load_tokenizer(str(tiny))

    def by(adapter: Path | None) -> list[list[float]]:
        model = phase.load_base(str(tiny), quick())
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        return [
            [float(logps(model.eval(), tokenizer, p, answer(a)).sum()) for p, a in zip(PROMPTS, texts, strict=True)]
            for texts in (GOOD, BAD)
        ]

    found = {name: by(path) for name, path in {"base": None, **adapters}.items()}
    goods = sorted(good[0] for good, _ in found.values())
    assert min(b - a for a, b in itertools.pairwise(goods)) > 0.05, "the tests could not tell them apart"
    return found


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("reference", ["sft", "base", "parent", "champion"])
def test_dpo_is_held_to_the_very_model_that_the_recipe_names(
    tmp_path: Path,
    tiny: Path,
    adapters: dict[str, Path],
    said: dict[str, list[list[float]]],
    reference: str,
    precompute: bool,
) -> None:
    recipe = quick(dpo={"reference": reference, "precompute_ref_log_probs": precompute})
    given = plan(tiny, recipe, parent=str(adapters["parent"]), champion=str(adapters["champion"]))
    trainer = dpo.make_trainer(given, rows(), adapters["sft"], tmp_path / "dpo", tmp_path / "curve")
    batch = trainer.data_collator(list(trainer.train_dataset))
    held_to = [part.tolist() for part in trainer.compute_ref_log_probs(trainer.model, batch)]
    for ours, theirs in zip(held_to, said[reference], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)
    if precompute:
        for column, theirs in zip(("ref_chosen_logps", "ref_rejected_logps"), said[reference], strict=True):
            assert list(trainer.train_dataset[column]) == pytest.approx(theirs, abs=2e-3)
    tokenizer = phase.load_tokenizer(str(tiny))
    policy = [logps(trainer.model, tokenizer, p, answer(a)).sum() for p, a in zip(PROMPTS, GOOD, strict=True)]
    assert [float(p) for p in policy] == pytest.approx(said["sft"][0], abs=2e-3), "and starts from the SFT result"


def test_dpo_has_a_loss_on_the_answers_only(tmp_path: Path, tiny: Path, adapters: dict[str, Path]) -> None:
    trainer = dpo.make_trainer(plan(tiny, quick()), rows(), adapters["sft"], tmp_path / "dpo", tmp_path / "c")
    tokenizer = phase.load_tokenizer(str(tiny))
    batch = trainer.data_collator(list(trainer.train_dataset))
    found = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert found == [f"{text}<|im_end|>\n" for text in [*GOOD, *BAD]]


def test_training_moves_the_policy_and_not_the_reference(tmp_path: Path, tiny: Path, adapters: dict[str, Path]) -> None:
    recipe = quick(dpo={"reference": "parent", "max_steps": 2, "batch_size": 3})
    given = plan(tiny, recipe, parent=str(adapters["parent"]))
    trainer = dpo.make_trainer(given, rows(), adapters["sft"], tmp_path / "dpo", tmp_path / "curve")
    batch = trainer.data_collator(list(trainer.train_dataset))
    tokenizer = phase.load_tokenizer(str(tiny))
    before = trainer.compute_ref_log_probs(trainer.model, batch)[0].tolist()
    policy = float(logps(trainer.model, tokenizer, PROMPTS[0], answer(GOOD[0])).sum())
    trainer.train()
    trainer.model.eval()
    assert trainer.compute_ref_log_probs(trainer.model, batch)[0].tolist() == pytest.approx(before, abs=1e-4)
    assert abs(float(logps(trainer.model, tokenizer, PROMPTS[0], answer(GOOD[0])).sum()) - policy) > 0.05


@pytest.mark.parametrize("reference", ["parent", "champion"])
def test_where_there_is_none_the_reference_is_the_base(
    tmp_path: Path, tiny: Path, adapters: dict[str, Path], said: dict[str, list[list[float]]], reference: str
) -> None:
    recipe = quick(dpo={"reference": reference})
    trainer = dpo.make_trainer(plan(tiny, recipe), rows(), adapters["sft"], tmp_path / "dpo", tmp_path / "curve")
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert trainer.compute_ref_log_probs(trainer.model, batch)[0].tolist() == pytest.approx(said["base"][0], abs=2e-3)


def test_a_reference_of_another_shape_is_refused(tmp_path: Path, tiny: Path, adapters: dict[str, Path]) -> None:
    wide = random_adapter(tiny, tmp_path / "wide", 5, r=4)
    recipe = quick(dpo={"reference": "champion"})
    with pytest.raises(phase.TrainingFailure, match=r"champion: its adapter has another shape \(r 4, ours 8\)"):
        dpo.make_trainer(
            plan(tiny, recipe, champion=str(wide)), rows(), adapters["sft"], tmp_path / "dpo", tmp_path / "curve"
        )


def test_a_base_model_that_is_a_pickle_is_not_loaded(tmp_path: Path, tiny: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(phase.TrainingFailure, match="cannot load"):
        phase.load_base(str(folder), quick())
