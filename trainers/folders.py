"""A folder that a command makes: whole, or not there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.errors import SettingsError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` when all went well: nobody sees half of it.

    Raises `SettingsError` when `out` is there already and not empty: nothing is overwritten.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} exists: name a folder that does not")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise SettingsError(f"cannot write {out}: {error}") from None
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp makes it private
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
