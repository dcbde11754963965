"""Starting and ending the training process. No torch here: the service stays small."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from trainers.recipe import Recipe
from trainers.rundir import RunFolder

TERM_S = 5.0
"""After SIGTERM the process group gets this long; training has nothing to save that a checkpoint does not hold."""


def command(folder: Path, recipe: Recipe) -> list[str]:
    """The command line: plain python, or `accelerate launch` for several processes."""
    target = ["-m", "trainers.run", str(folder), "--with-parent"]
    if recipe.num_processes == 1:
        return [sys.executable, *target]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={recipe.num_processes}"]
    # The trainers of transformers do mixed precision themselves; port 0 lets two runs on one machine coexist.
    launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    return [*launcher, "--multi_gpu", *target]


def environment(recipe: Recipe) -> dict[str, str]:
    """Ours, with what training needs."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    env["TOKENIZERS_PARALLELISM"] = "false"
    if recipe.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif recipe.num_processes == 1:
        # One process that sees several GPUs would be wrapped in DataParallel, which TRL refuses.
        env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return env


class TrainingProcess:
    """One attempt of a run in a process group of its own, with its output in `train.log`."""

    def __init__(self, folder: RunFolder, recipe: Recipe) -> None:
        self._folder = folder
        self._recipe = recipe
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it. Its standard input is a pipe from us: when we are gone, however, it ends."""
        with self._folder.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command(self._folder.path.absolute(), self._recipe),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(self._recipe),
                start_new_session=True,
            )

    async def wait(self, timeout_s: float) -> int | None:
        """The exit code (negative: the signal that ended it), or None while it runs."""
        if self._process is None:
            raise RuntimeError("wait before start")
        try:
            return await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            return None

    async def stop(self) -> None:
        """End the whole group: SIGTERM, then SIGKILL."""
        process = self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The group may outlive its leader (accelerate's workers): signal it whether or not the leader is there.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            if process.returncode is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), TERM_S)
