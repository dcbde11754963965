"""`haypile rescore`."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands.common import JsonOption, generations_of, print_json, run

if TYPE_CHECKING:
    from streams.buffer.generations import GenerationState
    from streams.settings import Settings

LOOK_S = 1.0


def rescore(
    cancel: Annotated[bool, typer.Option("--cancel", help="Give up the rescoring that is under way.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the progress until the buffer has gone over.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take the buffer through the judge of these settings, in the background, by the workers that score with it.

    A new judge does so by itself; the command is for going back to an earlier one, or for rating all anew.
    """
    from streams.errors import SettingsError
    from streams.settings import load_settings

    if cancel and wait:
        raise SettingsError("rescore: --cancel has nothing to wait for")
    result = run(_rescore(load_settings(), cancel=cancel, wait=wait))
    if as_json:
        print_json(result)
    else:
        print(result["says"])


async def _rescore(settings: "Settings", *, cancel: bool, wait: bool) -> dict[str, Any]:
    from streams.judge import identity_of

    judge = identity_of(settings.judge)
    async with generations_of(settings) as generations:
        if cancel:
            state = await generations.read()
            done = await generations.cancel()
            says = f"given up; the buffer stays judge {state.judge}'s" if done else "nothing is being rescored"
            return {"result": "cancelled" if done else "nothing", "says": says, **described(await generations.read())}
        begun = await generations.begin(judge, forced=True)
        state = await generations.read()
        number = state.next
        while wait and begun in ("begun", "running") and state.next == number is not None:
            print(progress(state), flush=True)
            await asyncio.sleep(LOOK_S)
            state = await generations.read()
    over = state.active == number
    says = {
        "empty": "the buffer is empty: there is nothing to rescore",
        "begun": f"begun: {progress(state)}; workers that score with judge {judge} go on with it",
        "running": f"under way already: {progress(state)}",
    }[begun if begun in ("empty", "running") else "begun"]
    if wait and begun != "empty":
        says = f"the buffer is judge {judge}'s now" if over else "the rescoring was given up for another one"
    return {"result": "done" if over and number is not None else begun, "says": says, **described(state)}


def progress(state: "GenerationState") -> str:
    """One line about a rescoring."""
    return f"judge {state.judge} → {state.next_judge}: {state.left} members left (of {state.total} when it began)"


def described(state: "GenerationState") -> dict[str, Any]:
    """For `--json` and `haypile status`."""
    rescoring = None
    if state.next is not None:
        rescoring = {
            "judge": state.next_judge,
            "left": state.left,
            "total": state.total,
            "started_ms": state.started_ms,
        }
    return {"judge": state.judge, "generation": state.active, "rescoring": rescoring}
