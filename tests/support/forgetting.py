"""`haypile forget` as a process that a test can kill at a line of its progress, and a search of all that is stored.

`python -m tests.support.forgetting KIND ID` asks and does it with a short wait; `resume` instead of both goes on.
"""

import asyncio
import sys
from pathlib import Path

from deploy import forget as module
from deploy.forget import Forgetter, Report
from streams.settings import load_settings

SETTLE_S = 0.1
"""The test that kills it sees that the worker has read the list before it goes on."""
module.LEASE_S = 1.5  # what is killed here is not to be waited for


def stored_with(folder: Path, needles: list[bytes]) -> dict[str, list[bytes]]:
    """Files in which one of the needles stands; Parquet files are also read as tables, because they are packed."""
    import pyarrow.parquet

    found = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += repr(pyarrow.parquet.read_table(file).to_pylist()).encode()
        here = [needle for needle in needles if needle in content]
        if here:
            found[str(file.relative_to(folder))] = here
    return found


async def forget(arguments: list[str]) -> Report | None:
    def say(line: str) -> None:
        print(line, flush=True)

    forgetter = Forgetter(load_settings(), say, settle_s=SETTLE_S)
    if arguments == ["resume"]:
        return await forgetter.resume(retrain=False)
    kind, id = arguments
    return await forgetter.forget(kind, id, future=False, retrain=False, dry_run=False)


if __name__ == "__main__":
    print(asyncio.run(forget(sys.argv[1:])))
