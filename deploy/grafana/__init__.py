"""Three dashboards for Grafana, written with its own builders: `python -m deploy.grafana` makes dashboards/*.json."""
