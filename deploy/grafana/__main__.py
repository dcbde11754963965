"""Writes dashboards/*.json, which docker-compose.yml gives to Grafana."""

from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.curation import curation
from deploy.grafana.flow import flow
from deploy.grafana.training import training

FOLDER = Path(__file__).parent / "dashboards"


def rendered() -> dict[str, str]:
    """File name → its content."""
    boards: dict[str, Dashboard] = {"flow": flow(), "curation": curation(), "training": training()}
    found = {}
    for name, builder in boards.items():
        board = builder.build()
        for number, panel in enumerate(board.panels or [], 1):
            panel.id_val = number  # links to a panel stay the same
        found[f"{name}.json"] = JSONEncoder(sort_keys=True, indent=1, ensure_ascii=False).encode(board) + "\n"
    return found


if __name__ == "__main__":
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
