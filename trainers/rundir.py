"""The folder of a run: what it was asked, how far it is, what it learned. Files are replaced by rename.

request.json    the `TrainRequest`                                   written by the service, once
plan.json       recipe, base model, adapters to start from           written by the service, once
progress.json   phase, phases that are complete, their metrics       written by the training process
error.json      why the last attempt ended                           written by the training process
record.json     events published, version, verdict, outcome          written by the service
curve.jsonl     learning curves, one point a line                    appended by the training process
train.log       output of the training process (train-1.log, … of other machines)
tensorboard/    the curves again, where the recipe asks for them    appended by the training process
sft/ dpo/       checkpoints; adapter/ in each is the phase's result, complete once progress.json says so
"""

import json
import os
import re
from pathlib import Path
from typing import TypeVar

import msgspec

from streams.errors import Fatal, InvalidRecord
from streams.records import Forgotten, Phase, TrainRequest
from trainers.recipe import Recipe

Metrics = dict[str, float | int | str | bool | None]

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""Run ids become folder names and parts of adapter names."""

FINAL: tuple[Phase, ...] = ("done", "failed", "rejected")


class Plan(msgspec.Struct, kw_only=True):
    """All that the training process needs; fixed when the run starts."""

    snapshot: str
    base_model: str
    recipe: Recipe
    parent: str | None = None
    """Folder of the adapter that training starts from; null: a new one."""
    champion: str | None = None
    """Folder of the champion's adapter when the run started."""
    earlier_snapshots: list[str] = []
    """For replay, newest first."""
    held_out_snapshots: list[str] = []
    """Every snapshot that some version was trained or compared on: what they held out is never trained on."""
    trained_on: dict[str, str] = {}
    """Snapshots that rows may come from → SHA-256 of their `train.parquet` when the run was planned."""
    forgotten: list[Forgotten] = []
    """What must not be trained on, where the snapshots are not rid of it yet."""


class Progress(msgspec.Struct, kw_only=True):
    """How far the training process is."""

    phase: str = "queued"
    completed: list[str] = []
    metrics: Metrics = {}


class Failure(msgspec.Struct, kw_only=True):
    """Why an attempt of the training process ended."""

    reason: str
    """A short code: `out_of_memory`, `no_rows`, `snapshot`, `model`, `recipe`, `reference`, `diverged`, `plan`,
    `unexpected` (what may go better the next time)."""
    error: str


class Record(msgspec.Struct, kw_only=True):
    """What the service did with a run: enough to go on after a crash without doing anything twice."""

    published: list[Phase] = []
    metrics: Metrics = {}
    version: str | None = None
    attempts: int = 0
    """Training processes that were started and ended by themselves with an unexpected failure."""
    points: dict[str, int] = {}
    """Last step of each phase whose point of the learning curve was sent to `train.events`."""
    outcome: Phase | None = None
    reason: str | None = None


T = TypeVar("T")


def _encode_unknown(value: object) -> object:
    if isinstance(value, Recipe):
        return value.model_dump(mode="json")
    raise NotImplementedError(type(value).__name__)


def _decode_unknown(kind: type, value: object) -> object:
    if kind is Recipe:
        return Recipe.model_validate(value)
    raise NotImplementedError(kind.__name__)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` with `content`: a reader sees the old or the new file, also after a power cut."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


class RunFolder:
    """Typed access to the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curve = path / "curve.jsonl"
        self.log = path / "train.log"

    @classmethod
    def of(cls, work_dir: Path, run_id: str) -> "RunFolder":
        """The folder of a run id. Raises `InvalidRecord` for an id that is no plain name."""
        if not RUN_ID.fullmatch(run_id):
            raise InvalidRecord("bad_run_id", f"{run_id!r}: letters, digits, '_', '.' and '-' only, at most 100")
        return cls(work_dir / run_id)

    def phase(self, name: str) -> Path:
        """Folder of a phase."""
        return self.path / name

    def adapter(self, phase: str) -> Path:
        """The adapter that a phase made."""
        return self.path / phase / "adapter"

    def read(self, kind: type[T], name: str) -> T | None:
        """The content of a file, None if it is not there. Raises `Fatal` for one that cannot be read."""
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Fatal(f"cannot read {self.path / name}: {error}") from None
        try:
            return msgspec.json.decode(content, type=kind, dec_hook=_decode_unknown)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Fatal(f"{self.path / name} is not readable: {error}") from None

    def write(self, name: str, content: msgspec.Struct) -> None:
        """Replace a file."""
        write_atomic(self.path / name, msgspec.json.encode(content, enc_hook=_encode_unknown))

    def request(self) -> TrainRequest | None:
        """What was asked."""
        return self.read(TrainRequest, "request.json")

    def progress(self) -> Progress:
        """How far training is."""
        return self.read(Progress, "progress.json") or Progress()

    def record(self) -> Record:
        """What the service has done."""
        return self.read(Record, "record.json") or Record()

    def is_final(self) -> bool:
        """Whether the run is over, however it ended."""
        return self.record().outcome in FINAL

    def result(self) -> Path:
        """The adapter that a complete run made: DPO's, or SFT's where there was no pair."""
        dpo = self.adapter("dpo")
        return dpo if dpo.is_dir() else self.adapter("sft")

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of the training process' output, in one line."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())

    def points(self) -> list[dict[str, float | int | str]]:
        """The learning curves, without a last line cut by a kill; a step repeated after a resume counts once."""
        try:
            lines = self.curve.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        points: dict[tuple[str, int, bool], dict[str, float | int | str]] = {}
        for line in lines:
            try:
                point = json.loads(line)
            except ValueError:
                continue
            points[(str(point["phase"]), int(point["step"]), "loss" in point)] = point
        return list(points.values())
