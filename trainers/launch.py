"""Starting and ending the training process. No torch here: the service stays small."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

import yaml

from streams.errors import SettingsError
from trainers.recipe import Recipe
from trainers.rundir import RunFolder

TERM_S = 5.0
"""After SIGTERM the process group gets this long; training has nothing to save that a checkpoint does not hold."""


def check(recipe: Recipe) -> None:
    """Raises `SettingsError` for a launch file that cannot be read or that needs a package which is not installed."""
    if recipe.launch.num_processes == 1:
        return
    file = recipe.launch.config_file()
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"recipe: launch.config: cannot read {file}: {' '.join(str(error).split())}") from None
    kind = content.get("distributed_type") if isinstance(content, dict) else None
    if kind is None:
        raise SettingsError(f"recipe: launch.config: {file} is no file of accelerate: it has no distributed_type")
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise SettingsError("recipe: launch.config: deepspeed is not installed: pip install deepspeed")


def command(folder: Path, recipe: Recipe, machine_rank: int = 0) -> list[str]:
    """The command line on one of the recipe's machines: plain python, or `accelerate launch` for several processes."""
    target = ["-m", "trainers.run", str(folder), "--with-parent"]
    launch = recipe.launch
    if launch.num_processes == 1:
        return [sys.executable, *target]
    # Always a file of ours: accelerate would take the user's default one, which may be for something else altogether.
    launcher = ["accelerate.commands.launch", f"--config_file={launch.config_file()}"]
    launcher += [f"--num_processes={launch.num_processes}", f"--num_machines={launch.num_machines}"]
    # The trainers of transformers do mixed precision themselves.
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", f"--machine_rank={machine_rank}"]
    if launch.main_address is None:
        launcher += ["--main_process_port=0"]  # any free one: two runs on one machine can coexist
    else:
        host, _, port = launch.main_address.partition(":")
        launcher += [f"--main_process_ip={host}", f"--main_process_port={port}"]
    return [sys.executable, "-m", *launcher, *target]


def environment(recipe: Recipe) -> dict[str, str]:
    """Ours, with what training needs."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    env["TOKENIZERS_PARALLELISM"] = "false"
    if recipe.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif recipe.launch.num_processes == 1:
        # One process that sees several GPUs would be wrapped in DataParallel, which TRL refuses.
        env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return env


class TrainingProcess:
    """One attempt of a run in a process group of its own, with its output in `train.log` (`train-1.log` and so on for
    the other machines of a recipe)."""

    def __init__(self, folder: RunFolder, recipe: Recipe, machine_rank: int = 0) -> None:
        self._folder = folder
        self._recipe = recipe
        self._machine_rank = machine_rank
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it. Its standard input is a pipe from us: when we are gone, however, it ends."""
        with self._log().open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command(self._folder.path.absolute(), self._recipe, self._machine_rank),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(self._recipe),
                start_new_session=True,
            )

    def _log(self) -> Path:
        log = self._folder.log
        return log if self._machine_rank == 0 else log.with_name(f"{log.stem}-{self._machine_rank}{log.suffix}")

    async def wait(self, timeout_s: float) -> int | None:
        """The exit code (negative: the signal that ended it), or None while it runs."""
        if self._process is None:
            raise RuntimeError("wait before start")
        try:
            return await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            return None

    async def stop(self) -> None:
        """End the whole group: SIGTERM, then SIGKILL. (accelerate's workers are in groups of their own: they end with
        their launcher, and at the latest with their standard input.)"""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The group may outlive its leader: signal it whether or not the leader is there.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            if process.returncode is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), TERM_S)
