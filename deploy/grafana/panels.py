"""The few kinds of panel that the dashboards are made of, each with a title, a description, a unit and its queries.

A dashboard is 24 wide and filled from left to right. `$datasource`, `$instance` and `$hop` are its variables.
"""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

WIDTH = 24
PANELS_IN_A_LINE = {1: 1, 2: 2, 4: 2}
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
Panel = stat.Panel | timeseries.Panel | bargauge.Panel | statetimeline.Panel
Queries = Mapping[str, str]
"""Legend (with `{{label}}`s) → PromQL."""
Bounds = Sequence[tuple[float | None, str]]
"""From this value on, this colour; the first bound is None."""


def _targets(queries: Queries, *, instant: bool = False) -> list[Builder[Dataquery]]:
    # The answer to an instant query keeps the order of `sort` and `topk`; one over time comes in the order of labels.
    targets: list[Builder[Dataquery]] = []
    for number, (legend, expr) in enumerate(queries.items()):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number))
        targets.append(query.instant() if instant else query.range())
    return targets


def _thresholds(bounds: Bounds) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=value, color=color) for value, color in bounds]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    return legend.display_mode(LegendDisplayMode.LIST)


def number(
    title: str, about: str, expr: str, unit: str, bounds: Bounds = ((None, BLUE),), *, decimals: int | None = None
) -> stat.Panel:
    """One number of now, coloured by its bounds, with its course behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .targets(_targets({"": expr}))
        .unit(unit)
        .thresholds(_thresholds(bounds))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(4)
        .height(4)
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    about: str,
    queries: Queries,
    unit: str,
    *,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    bounds: Bounds = (),
) -> timeseries.Panel:
    """Series over time; with `bounds`, dashed lines where they are."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .targets(_targets(queries))
        .unit(unit)
        .legend(_legend())
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .height(8)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if bounds:
        panel.thresholds(_thresholds([(None, "transparent"), *bounds]))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
        panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
    return panel


def bars(
    title: str, about: str, queries: Queries, unit: str, *, by_label: bool = False, bounds: Bounds = ((None, BLUE),)
) -> bargauge.Panel:
    """The values of now, a bar each, in the order of the query, or in that of their labels."""
    return (
        bargauge.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .targets(_targets(queries, instant=not by_label))
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(bounds))
        .display_mode(BarGaugeDisplayMode.BASIC)
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .height(8)
    )


def states(title: str, about: str, queries: Queries, texts: Mapping[int, tuple[str, str]]) -> statetimeline.Panel:
    """Since when something is 0 or 1; `texts` gives the word and the colour of each value."""
    options = {
        str(value): ValueMappingResult(text=text, color=color, index=value) for value, (text, color) in texts.items()
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .targets(_targets(queries))
        .mappings([ValueMap(options=options)])
        .show_value(VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.8)
        .legend(common.VizLegendOptions().show_legend(False))
        .height(8)
    )


def fill(made: dashboard.Dashboard, rows: Mapping[str, Sequence[Panel]]) -> dashboard.Dashboard:
    """Puts the panels in, row after row, as wide as there is room; a row without a title has no heading."""
    for title, panels in rows.items():
        if title:
            made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel.span(WIDTH // PANELS_IN_A_LINE.get(len(panels), 3)) if title else panel)
    return made


def board(name: str, title: str, about: str, *, per_hop: bool = False) -> dashboard.Dashboard:
    """An empty dashboard with its variables and a link to the other two."""
    made = (
        dashboard.Dashboard(f"haypile: {title}")
        .uid(f"haypile-{name}")
        .description(about)
        .tags(["haypile"])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("haypile")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["haypile"])
            .as_dropdown(False)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("instance", "Process", 'label_values(up{job=~"haypile-.*"}, instance)'))
    )
    if per_hop:
        made.with_variable(_choice("hop", "Hop", "label_values(haypile_record_seconds_count, hop)"))
    return made


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all", selected=True))
    )
