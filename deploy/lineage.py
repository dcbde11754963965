"""Where an adapter comes from, told to people (`haypile models show`)."""

from collections.abc import Iterator, Mapping

from trainers.lineage import Lineage, when


def told(found: Lineage) -> Iterator[str]:
    """The lineage as lines."""
    manifest = found.manifest
    yield f"{manifest.version}{' (the champion)' if found.is_champion else ''}"
    yield f"  made         {when(manifest.created_at)} by run {manifest.run_id}"
    if manifest.pruned_at is not None:
        yield f"  removed      {when(manifest.pruned_at)} by retention; this is what is remembered"
    yield f"  base model   {manifest.base_model}"
    yield f"  snapshot     {manifest.snapshot}"
    if found.snapshot is None:
        yield "               (no longer kept)"
    else:
        rows = found.snapshot["rows"]
        reasons = ", ".join(found.snapshot["reasons"] or []) or "not recorded"
        yield f"               {rows.get('train', 0)} prompts, {rows.get('eval', 0)} held out; because of {reasons}"
    yield f"  judge        {manifest.judge}"
    for step in found.ancestors[1:]:
        yield f"  parent       {step.version} on {step.snapshot}{' (removed)' if step.removed else ''}"
    yield f"  parent       {manifest.base_model}"
    recipe = manifest.recipe
    for section in ("data", "lora", "sft", "dpo"):
        if section in recipe:
            yield f"  {section:12s} {', '.join(f'{name} {value}' for name, value in recipe[section].items())}"
    for name, value in manifest.metrics.items():
        yield f"  {name:28s} {value:g}" if isinstance(value, float) else f"  {name:28s} {value}"
    gate, canary = manifest.gate, manifest.canary
    yield f"  gate         {'none yet' if gate is None else _gate_line(gate)}"
    if canary is not None:
        yield f"  canary       {'passed' if canary['passed'] else 'FAILED'}: {canary['reason']}"
    for change in found.history:
        where = "served" if change.version == manifest.version else f"{change.version or 'the base model'} served"
        yield f"  {when(change.at)}  {where} from here on: {change.kind} by {change.by} ({change.reason})"


def _gate_line(gate: Mapping[str, object]) -> str:
    return f"{'promote' if gate.get('promote') else 'reject'}: {gate.get('reason')} (against {gate.get('champion')})"
