"""`haypile doctor`."""

import typer

from deploy.commands.common import JsonOption, print_json, run


def doctor(as_json: JsonOption = False) -> None:
    """Is each part reachable and as the settings say? For what is wrong: what to do. Exit code 1 if anything is."""
    from deploy.probes import examine
    from streams.settings import load_settings

    findings = run(examine(load_settings()))
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            print(f"{'ok   ' if finding.ok else 'WRONG'} {finding.part:8s} {finding.what}")
            if finding.to_do:
                print(f"               → {finding.to_do}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
