"""Why training does or does not start, how the run goes, and what serves."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import BLUE, GREEN, RED, YELLOW, Panel, board, fill, lines, number, states

LAST = "haypile_training_last_run_timestamp_seconds"


def training() -> Dashboard:
    """The dashboard."""
    made = board("training", "training", "From the decision to train to the adapter that serves.")
    return fill(
        made,
        {
            "": _now(),
            "The decision": _decision(),
            "The run": _run(),
            "The outcome": _outcome(),
        },
    )


def _now() -> list[Panel]:
    return [
        number(
            "Champion",
            "Number of the version that serves; 0 is the base model.",
            "max(haypile_champion_number)",
            "none",
        ),
        number(
            "Since its promotion",
            "How long this champion has served.",
            "time() - (max(haypile_champion_since_timestamp_seconds) > 0)",
            "s",
            ((None, GREEN), (14 * 86_400, YELLOW)),
        ),
        number(
            "Servers without it",
            "Serving vLLMs that do not have the champion, or cannot be asked.",
            "count(max by (server) (haypile_champion_served) == 0) or vector(0)",
            "short",
            ((None, GREEN), (1, RED)),
        ),
        number(
            "Last success",
            "Since a run has ended with a promoted adapter.",
            f'time() - (max({LAST}{{outcome="done"}}) > 0)',
            "s",
            ((None, GREEN), (7 * 86_400, YELLOW), (14 * 86_400, RED)),
        ),
        number(
            "Refused in a row",
            "Challengers that the gate has refused since it let one through.",
            "max(haypile_gate_rejections_in_a_row)",
            "short",
            ((None, GREEN), (1, YELLOW), (3, RED)),
        ),
        number(
            "Last run failed",
            "1: the last run that ended has failed.",
            f'max({LAST}{{outcome="failed"}}) > bool max({LAST}{{outcome=~"done|rejected"}})',
            "short",
            ((None, GREEN), (1, RED)),
        ),
    ]


def _decision() -> list[Panel]:
    return [
        states(
            "Why (not) to train",
            "The conditions of the policy. One reason and every guard must hold: see `haypile train --dry-run`.",
            {"{{condition}}": "max by (condition) (haypile_trigger_condition)"},
            {1: ("holds", GREEN), 0: ("does not", YELLOW)},
        ),
        lines(
            "New members",
            "Admitted since the last run's snapshot: a reason to train at trigger.min_new.",
            {
                "new members": 'max(haypile_trigger_value{condition="new_members"})',
                "bound": 'max(haypile_trigger_bound{condition="new_members"})',
            },
            "short",
        ),
        lines(
            "Shift of the difficulty",
            "Population stability index of the members' difficulty since the last run; over 0.2 is large.",
            {"shift": 'max(haypile_trigger_value{condition="difficulty_shift"})'},
            "none",
            bounds=((0.2, YELLOW),),
        ),
        lines(
            "Members with answers",
            "Share that has answers: a guard of the policy.",
            {"share": 'max(haypile_trigger_value{condition="answered_share"})'},
            "percentunit",
            most=1,
        ),
    ]


def _run() -> list[Panel]:
    return [
        states(
            "Phase of the run",
            "What the trainer does; all idle: no run.",
            {"{{phase}}": 'max by (phase) (haypile_training_phase{instance=~"$instance"})'},
            {0: ("", "transparent"), 1: ("now", BLUE)},
        ),
        lines(
            "Loss",
            "Of the last logged step. DPO begins at ln 2 = 0.69.",
            {"{{phase}}": 'max by (phase) (haypile_training_loss{instance=~"$instance"})'},
            "none",
            least=None,
        ),
        lines(
            "Step",
            "Optimizer steps of the phase.",
            {"{{phase}}": 'max by (phase) (haypile_training_step{instance=~"$instance"})'},
            "short",
        ),
        lines(
            "Tokens trained on",
            "A second, all processes of the run together.",
            {"{{phase}}": 'max by (phase) (haypile_training_tokens_per_second{instance=~"$instance"})'},
            "short",
        ),
    ]


def _outcome() -> list[Panel]:
    return [
        lines(
            "Gate",
            "The challenger's win rate in the last gate, with its interval. One that includes a half says little.",
            {"{{end}}": "max by (end) (haypile_gate_win_rate)"},
            "percentunit",
            most=1,
            bounds=((0.5, YELLOW),),
        ),
        lines(
            "Runs that ended",
            "In the last day, by outcome.",
            {"{{outcome}}": "sum by (outcome) (increase(haypile_training_runs_total[1d]))"},
            "short",
            stacked=True,
        ),
        states(
            "Champion on the servers",
            "Whether each serving vLLM has it; the trainer gives it back within serving.reconcile_s.",
            {"{{server}}": "max by (server) (haypile_champion_served)"},
            {1: ("serves it", GREEN), 0: ("does not", RED)},
        ),
    ]
