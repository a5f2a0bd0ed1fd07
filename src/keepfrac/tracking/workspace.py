"""The W&B workspace of a project, as code: `python -m src.dashboard`, or `make dashboard`.

    python -m src.dashboard [--sweep NAME] [--project P] [--entity E] [--spec]

It is saved as a view of its own beside the others, and shows the runs of one sweep or of all. It reads the names that
tracking.py writes. Points and lines are arms: runs of one method and one keep_frac, averaged over their seeds.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from keepfrac.storage.commands import Parser, complain

ROOT = Path(__file__).resolve().parents[3]
SCORE = "test/score"
COLUMNS = (
    "run:displayName",
    "run:state",
    "config:method.value.name",
    "config:method.value.keep_frac",
    f"summary:{SCORE}",
    "summary:kept/achieved",
    "summary:cost/saved_bytes",
    "summary:cost/step_seconds",
    "summary:error",
)


def workspace(entity: str, project: str, sweep: str | None) -> Any:
    """Returns the workspace; no network is touched.

    Args:
        entity: who owns the project.
        project: its name.
        sweep: show the runs of this sweep (the W&B group) alone; None: all.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = {
        "Score": _scores(wr),
        "Loss terms": _losses(wr),
        "Constraints": _constraints(wr),
        "Failures": _failures(wr),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"keepfrac: {sweep or 'all sweeps'}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == _quoted(sweep)) if sweep else "",
            groupby=[ws.Config("method.name"), ws.Config("method.keep_frac")],
            pinned_columns=list(COLUMNS),
        ),
    )


def _quoted(text: str) -> str:
    # the library writes filters as Python between apostrophes, and reads them again
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _scores(wr: Any) -> list:
    def against(title: str, x: Any, log_x: bool = False) -> Any:
        return wr.ScatterPlot(title=f"score against {title}", x=x, y=wr.SummaryMetric(SCORE), log_x=log_x)

    axes = [
        wr.Config("method.name"),
        wr.Config("method.keep_frac"),
        wr.SummaryMetric("kept/achieved"),
        wr.SummaryMetric("cost/saved_bytes"),
        wr.SummaryMetric("cost/step_seconds"),
        wr.SummaryMetric("size/nonzeros"),
        wr.SummaryMetric(SCORE),
    ]
    return [
        against("keep_frac asked", wr.Config("method.keep_frac")),
        against("keep_frac achieved", wr.SummaryMetric("kept/achieved")),
        against("saved bytes", wr.SummaryMetric("cost/saved_bytes"), log_x=True),
        against("seconds of a step", wr.SummaryMetric("cost/step_seconds")),
        against("seconds of inference", wr.SummaryMetric("cost/latency_seconds")),
        against("parameters that are not zero", wr.SummaryMetric("size/nonzeros"), log_x=True),
        wr.ParallelCoordinatesPlot(
            title="a line per arm", columns=[wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
        ),
    ]


def _losses(wr: Any) -> list:
    return [
        wr.LinePlot(title="training loss", y=["train/loss"]),
        wr.LinePlot(title="validation loss", y=["val/loss"]),
        wr.LinePlot(title="terms of the loss", metric_regex="^loss/"),
    ]


def _constraints(wr: Any) -> list:
    return [
        wr.LinePlot(title="kept: asked and achieved", y=["kept/asked", "kept/achieved"]),
        wr.LinePlot(title="all that is kept", metric_regex="^kept/"),
    ]


def _failures(wr: Any) -> list:
    by_method = {"groupby": wr.Config("method.name"), "groupby_aggfunc": "sum"}
    return [
        wr.BarPlot(title="failed runs by method", metrics=["failed"], **by_method),
        wr.RunComparer(diff_only="split"),
    ]


def defaults() -> tuple[str, str | None]:
    """Returns project and entity as runs use them."""
    known = yaml.safe_load((ROOT / "conf" / "logger" / "wandb.yaml").read_text(encoding="utf-8"))
    return known["project"], known["entity"] or os.environ.get("WANDB_ENTITY")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from keepfrac.tracking import sync

    project, entity = defaults()
    parser = Parser(prog="python -m src.dashboard", description="Save the W&B workspace.")
    parser.add_argument("--sweep", type=lambda text: Path(text).name, help="a sweep's name or folder")
    parser.add_argument("--project", default=project)
    parser.add_argument("--entity", default=entity)
    parser.add_argument("--spec", action="store_true", help="print it as JSON and ask no server")
    given = parser.parse_args(arguments)
    if given.spec:
        sys.stdout.write(specification(workspace(given.entity or "entity", given.project, given.sweep)) + "\n")
        return 0
    if problem := sync.trouble():
        return complain(f"the workspace is not saved: {problem}")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        one = workspace(given.entity or wandb.Api().default_entity, given.project, given.sweep).save()
    except Exception as error:  # noqa: BLE001 - whatever the server says, in one line
        return complain(f"the workspace is not saved: {error}")
    sys.stdout.write(f"{one.url}\n")
    return 0


def specification(one: Any) -> str:
    """Returns a workspace as the JSON that W&B stores."""
    return one._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=1)
