"""Answering a suite: one line a question in a journal, so that a run that ends goes on where it was.

The journal's first line says what the answers are of (suite, model, sampling); a run that differs in that does not
append to it. A line that a kill cut off is dropped. The answers' files are made from the journal.
"""

import asyncio
import fcntl
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from streams.errors import Fatal, SettingsError
from streams.retry import OutageLog, patiently
from streams.vllm import BadRequest, TooLong
from trainers.suite import Answer, Question, Suite


class Run(msgspec.Struct, kw_only=True):
    """What the answers of a journal are of."""

    suite: str
    """Digest of the questions."""
    model: str
    max_tokens: int
    temperature: float
    seed: int


class Model(Protocol):
    """A model that is asked: `streams.vllm.VllmPool`."""

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str,
        temperature: float = 0.0,
        max_tokens: int | None = 512,
        seed: int | None = None,
    ) -> list[str]:
        """A list of one answer."""
        ...


class Journal:
    """The answers of one model to one suite, on disk. A context manager that holds a lock: one process at a time.

    Entering raises `SettingsError` when the file holds answers of another run, `Fatal` when another process has it.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self._run = run

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, answer: Answer) -> None:
        """Append an answer."""
        self._append(answer)
        self.answers[answer.key] = answer

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fatal(f"another process writes {self.path}") from None

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._append(self._run)
            return
        try:
            made = msgspec.json.decode(lines[0], type=Run)
            answers = [msgspec.json.decode(line, type=Answer) for line in lines[1:]]
        except msgspec.MsgspecError as error:
            raise SettingsError(f"--out: {self.path} is no journal of answers: {error}") from None
        differs = [name for name in Run.__struct_fields__ if getattr(made, name) != getattr(self._run, name)]
        if differs:
            raise SettingsError(
                f"--out: {self.path} has answers with another {', '.join(differs)}: name another folder, or remove it"
            )
        self.answers = {answer.key: answer for answer in answers}

    def _append(self, line: msgspec.Struct) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


async def answer_suite(
    suite: Suite,
    journal: Journal,
    *,
    pool: Model,
    model: str,
    run: Run,
    concurrency: int,
    make_ready: Callable[[], Awaitable[None]],
    on_answer: Callable[[], None] = lambda: None,
) -> None:
    """Ask for what the journal does not have. `model` is the served name; `make_ready` is called when a server does not
    know it (it was restarted) and raises if that cannot be helped.

    A question that the model cannot take (too long, refused) is noted as such. An outage is waited out; raises `Fatal`.
    """
    slots = asyncio.Semaphore(concurrency)
    outage = OutageLog("eval", time.monotonic)

    async def ask(turns: Sequence[Mapping[str, str]], most: int | None) -> str:
        async def once() -> list[str]:
            return await pool.chat(turns, model=model, temperature=run.temperature, max_tokens=most, seed=run.seed)

        try:
            [text] = await patiently(once, outage.failed)
        except Fatal:
            await make_ready()
            [text] = await patiently(once, outage.failed)
        outage.worked()
        return text

    async def answer(question: Question) -> None:
        turns: list[dict[str, str]] = []
        found = Answer(key=question.key, id=uuid.uuid4().hex, at=time.time())
        async with slots:
            try:
                for said in question.turns:
                    turns.append({"role": "user", "content": said})
                    try:
                        text = await ask(turns, run.max_tokens)
                    except TooLong:  # perhaps only with the room for the answer: take what the context leaves
                        text = await ask(turns, None)
                    turns.append({"role": "assistant", "content": text})
                    found.turns.append(text)
            except (TooLong, BadRequest) as error:
                found.turns, found.refused = [], str(error)
        journal.add(found)
        on_answer()

    tasks = [asyncio.create_task(answer(q)) for q in suite.questions if q.key not in journal.answers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
