"""`haypile models`: the registry of adapters."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.common import JsonOption, console, needs, print_json, run

if TYPE_CHECKING:
    from streams.settings import Settings
    from trainers.registry import Registry

app = typer.Typer(help="The adapters that were trained.", no_args_is_help=True)


VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A version of `models list`, or `champion`.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A folder that does not exist yet.")]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="FOLDER|NAME", help="The base model; without it training.base_model's or the hub's."
    ),
]


@app.callback()
def models() -> None:
    """The adapters that were trained."""


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Every version, oldest first; the champion is marked."""
    from rich.table import Table

    from streams.settings import load_settings
    from trainers.lineage import when
    from trainers.registry import Registry

    registry = Registry(load_settings().training.registry)
    champion = registry.champion().version
    versions = registry.versions()
    if as_json:
        print_json({"champion": champion, "versions": versions})
        return
    table = Table("", "version", "made", "parent", "win rate", "verdict", box=None, pad_edge=False)
    table.add_row("" if champion else "*", "(base model)", "", "", "", "")
    for manifest in versions:
        gate = manifest.gate or {}
        rate = gate.get("win_rate")
        table.add_row(
            "*" if manifest.version == champion else "",
            manifest.version,
            when(manifest.created_at).removesuffix(" UTC"),
            manifest.parent or "base",
            "" if rate is None else f"{rate:.2f}",
            _verdict(gate.get("promote"), (manifest.canary or {}).get("passed")),
        )
    console().print(table)


def _verdict(promote: bool | None, sane: bool | None) -> str:
    if sane is False:
        return "failed the canary"
    return {True: "promote", False: "reject", None: ""}[promote]


@app.command()
def show(version: VersionArgument, as_json: JsonOption = False) -> None:
    """Where a version comes from: snapshot, prompts, judge, recipe, parents, the gate's report; what became of it."""
    from deploy.lineage import told
    from streams.settings import load_settings
    from trainers.lineage import lineage_of
    from trainers.registry import Registry

    registry = Registry(load_settings().training.registry)
    found = lineage_of(registry, _version(registry, version))
    if as_json:
        print_json(found)
    else:
        for line in told(found):
            print(line)


def _version(registry: "Registry", version: str) -> str:
    """The version that is meant. Raises `Fatal` for `champion` when there is none."""
    from streams.errors import Fatal

    if version != "champion":
        return version
    champion = registry.champion().version
    if champion is None:
        raise Fatal("the base model serves: no adapter is the champion")
    return champion


@app.command()
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version of `models list`.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "asked for at the command line",
    force: Annotated[bool, typer.Option("--force", help="Also one that the gate or the canary refused.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a version on every server, if it passes the canary there."""
    import getpass

    from streams.errors import Fatal
    from streams.settings import load_settings
    from trainers import promotion
    from trainers.registry import Registry

    settings = load_settings()
    registry = Registry(settings.training.registry)
    before = registry.champion().version
    if registry.show(version).refused and not force:
        raise Fatal(f"{version} was refused (haypile models show {version} says why); --force serves it all the same")
    run(promotion.promote(settings.serving, registry, version, reason=reason, by=getpass.getuser()))
    if as_json:
        print_json({"before": before, "champion": version})
    elif before == version:
        print(f"{version} serves already")
    else:
        print(f"{before or 'the base model'} was replaced by {version} on {', '.join(settings.serving.urls)}")


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "asked for at the command line",
    as_json: JsonOption = False,
) -> None:
    """Serve the champion before this one again; a server that is down gets it when it is back."""
    import getpass

    from streams.settings import load_settings
    from trainers import promotion
    from trainers.registry import Registry

    settings = load_settings()
    registry = Registry(settings.training.registry)
    before = registry.champion().version
    run(promotion.rollback(settings.serving, registry, reason=reason, by=getpass.getuser()))
    after = registry.champion().version
    if as_json:
        print_json({"before": before, "champion": after})
    else:
        servers = ", ".join(settings.serving.urls)
        print(f"{before or 'the base model'} was replaced by {after or 'the base model'} on {servers}")


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove adapters, snapshots and run folders that training.keep_* does not keep. (The trainer does it, too.)"""
    import time

    from streams.settings import load_settings
    from trainers import retention
    from trainers.registry import Registry

    settings = load_settings()
    registry = Registry(settings.training.registry)
    plan = retention.prune(settings, registry, int(time.time() * 1000), dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "removed": {f"{kind}s": names for kind, names in plan.items()}})
        return
    for kind, names in plan.items():
        for name in names:
            print(f"{'would remove' if dry_run else 'removed'} {kind:8s} {name}")
    if not any(names for _, names in plan.items()):
        print("nothing to remove")


@app.command()
def merge(version: VersionArgument, out: OutOption, base: BaseOption = None) -> None:
    """Write the full weights: base model and adapter in one, for servers that take no LoRA."""
    from streams.settings import load_settings
    from trainers.folders import new_folder
    from trainers.merge import merge as merge_into
    from trainers.registry import Registry

    settings = load_settings()
    registry = Registry(settings.training.registry)
    version = _version(registry, version)
    base_model = _base_model(settings, registry, version, base)
    with new_folder(out) as folder, needs("trainer"):
        registry.verify(version)
        merge_into(base_model, registry.path(version), folder)
    print(f"{version} merged into {base_model}: {out}")


@app.command()
def export(
    version: VersionArgument,
    out: OutOption,
    merged: Annotated[bool, typer.Option("--merged", help="The full weights instead of the adapter.")] = False,
    base: BaseOption = None,
) -> None:
    """Write a folder for the Hugging Face hub, with a model card made from the lineage."""
    from streams.settings import load_settings
    from trainers.export import export as export_into
    from trainers.folders import new_folder
    from trainers.lineage import lineage_of
    from trainers.registry import Registry

    settings = load_settings()
    registry = Registry(settings.training.registry)
    version = _version(registry, version)
    registry.verify(version)
    base_model = _base_model(settings, registry, version, base) if merged else None
    with new_folder(out) as folder, needs("trainer"):
        export_into(lineage_of(registry, version), registry.path(version), folder, base_model=base_model)
    print(f"{version}{', merged' if merged else ''}: {out}")


def _base_model(settings: "Settings", registry: "Registry", version: str, named: str | None) -> str:
    """The base model of a version: `--base`, the settings' where it is that one, else its name on the hub.

    Raises `Fatal` when `--base` is another model than the adapter was trained on.
    """
    from streams.errors import Fatal
    from trainers.runner import base_name

    trained_on = registry.show(version).base_model
    if named is not None:
        if base_name(named) != trained_on:
            raise Fatal(f"{version} was trained on {trained_on}, and {named} is {base_name(named)}")
        return named
    own = settings.training.base_model
    return own if own is not None and base_name(own) == trained_on else trained_on
