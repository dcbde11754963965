"""The README tells of the tree and of the commands as they are."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from deploy.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def tree() -> list[str]:
    """Paths that the README's tree names."""
    block = next(b for b in re.findall(r"```\n(.*?)```", README, re.DOTALL) if b.startswith("streams/"))
    found, folders = [], {0: ""}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = [name for name in re.split(r"[ ,]+", re.split(r"  +", line.strip())[0]) if "." in name or "/" in name]
        for name in names:
            found.append(folders[depth] + name)
            if name.endswith("/"):
                folders[depth + 1] = folders[depth] + name
    return found


def test_everything_in_the_tree_exists() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("folder", ["streams", "streams/buffer", "agents", "agents/rules", "trainers", "deploy"])
def test_every_module_is_in_the_tree(folder: str) -> None:
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / folder).glob("*.py") if p.name != "__init__.py"}
    assert modules <= set(tree())


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    command = get_command(app)
    top = set(command.commands)  # type: ignore[attr-defined]
    rows = re.findall(r"^\| `haypile ([^|]*)\|", README, re.MULTILINE)
    named = {row.split()[0].strip("`") for row in rows}
    assert named == top
    for group in ("buffer", "dlq", "models", "judge", "topics", "config"):
        text = " ".join(row for row in rows if row.startswith(group))
        for name in command.commands[group].commands:  # type: ignore[attr-defined]
            assert name in text, f"haypile {group} {name} is not in the README"
