"""A fake vLLM whose models have a quality and a judge that sees it through noise: gates with real statistics.

A model is named `quality-length` in units of the prompts' spread and of characters, for example `0.8-300`. Its answer
to a prompt says its own quality (the model's, the prompt's luck and noise of deviation 1, seeded) and has about the
length named. The judge rates that quality, plus a liking for length and, in pairs, for a place.
"""

import math
import random
import re
from typing import Any

from tests.support.fake_vllm import ANSWER, FakeVllm

SAID = re.compile(r"quality (-?\d+\.\d+)")


class SimulatedModels(FakeVllm):
    """`seed` gives other answers of the same models. `likes_length`: quality points for a doubled length;
    `likes_first`: log-odds that the judge of pairs adds to the answer shown first."""

    def __init__(self, seed: int, models: tuple[str, ...], *, likes_length: float = 0.0, likes_first: float = 0.0):
        super().__init__(models=(*models, "judge"))
        self.seed = seed
        self.likes_length = likes_length
        self.likes_first = likes_first

    def _chat_body(self, body: dict[str, Any]) -> dict[str, Any]:
        mean, length = (float(part) for part in body["model"].rsplit("-", 1))
        draw = random.Random(f"{self.seed} {body['model']} {body['messages'][-1]['content']}")
        text = f"quality {draw.gauss(mean, 1):.4f} ".ljust(round(length * draw.lognormvariate(0, 0.3)), "x")
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}

    def _choice(self, index: int, prompt: str) -> dict[str, Any]:
        answers = prompt.split("<answer>")[1:]
        if len(answers) == 2:
            odds = 2 * (self._seen(answers[0]) - self._seen(answers[1])) + self.likes_first
            shares = {"A": 1 / (1 + math.exp(-odds)), "B": 1 / (1 + math.exp(odds))}
        else:
            found = ANSWER.search(prompt)
            assert found is not None
            rating = min(max(5 + self._seen(found[1]), 1.0), 9.0)  # the mean of the two labels around it
            low = min(int(rating), 8)
            shares = {str(low): 1 - (rating - low), str(low + 1): rating - low}
        top = {label: math.log(max(0.9 * share, 1e-9)) for label, share in shares.items()}
        return {"index": index, "text": max(top, key=top.__getitem__), "logprobs": {"top_logprobs": [top]}}

    def _seen(self, answer: str) -> float:
        said = SAID.search(answer)
        assert said is not None
        return float(said[1]) + self.likes_length * math.log2(len(answer) / 300)
