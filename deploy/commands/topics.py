"""`haypile topics`."""

import typer

from deploy.commands.common import JsonOption, print_json

app = typer.Typer(help="The Kafka topics.", no_args_is_help=True)


@app.callback()
def topics() -> None:
    """The Kafka topics."""


@app.command()
def create(as_json: JsonOption = False) -> None:
    """Create the topics that are missing; the others stay as they are."""
    from streams.settings import load_settings
    from streams.topics import create_topics, partitions_of, topic_names

    kafka = load_settings().kafka
    created = create_topics(kafka)
    rows = [
        {"topic": topic, "partitions": partitions_of(kafka, topic), "created": topic in created}
        for topic in topic_names(kafka).all()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['topic']}: " + (f"created with {row['partitions']} partitions" if row["created"] else "was there"))
