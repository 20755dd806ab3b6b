"""Sentences that a plan carries along: where its figures rest on less than a reader might think."""

from __future__ import annotations

from planner.cost.instance import Instance
from planner.inputs.units import format_percent


def notes(instance: Instance, stopped_by: str, gap: float) -> tuple[str, ...]:
    """What a reader must know before trusting the figures of a plan.

    Args:
        instance: what was planned for.
        stopped_by: why the search ended, as the plan says it.
        gap: (objective - bound) / objective.
    """
    made = []
    gone = instance.topology.file.out_of_service
    if gone:
        named = [f"node {g.node}" + (f" GPU {', '.join(map(str, g.gpus))}" if g.gpus else "") for g in gone[:8]]
        more = f" and {len(gone) - 8} more" if len(gone) > 8 else ""
        made.append(f"GPU ids count those in service, node by node; out of service: {'; '.join(named)}{more}")
    windows = instance.windows
    if windows is None:
        made.append("no trace: every expert is taken to be chosen equally often; the real balance is unknown")
    else:
        missing = len(instance.model.moe_layer_ids) - len(instance.traced_layer_ids)
        if missing:
            total = len(instance.model.moe_layer_ids)
            made.append(
                f"the trace covers {total - missing} of {total} MoE layers; the others are placed linearly "
                "and taken to need the mean linear time of those"
            )
        per_window = float(windows.tokens_S.mean())
        holds = f"a window holds {per_window:,.0f} token{'' if round(per_window) == 1 else 's'}"
        if per_window > 2 * instance.step_tokens:
            made.append(f"{holds}, a step {instance.step_tokens:,}: single steps vary more than the windows show")
        elif per_window * 2 < instance.step_tokens:
            made.append(f"{holds}, a step {instance.step_tokens:,}: steps are better balanced than the windows show")
        short = int((windows.tokens_S * 2 < instance.step_tokens).sum())
        if short and per_window * 2 >= instance.step_tokens:
            made.append(
                f"{short} of {len(windows.tokens_S)} windows: less than half of a step's {instance.step_tokens:,} "
                "tokens; they count as much as the others, and chance alone unbalances them more"
            )
    if stopped_by in ("time_limit", "interrupt"):
        what = "the time limit" if stopped_by == "time_limit" else "an interrupt"
        made.append(
            f"{what} stopped the search; the plan is the best until then: "
            f"another can save at most {format_percent(gap, 2)} of its step time"
        )
    return tuple(made)
