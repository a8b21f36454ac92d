"""Show Report: what was asked for, what was really active, and why, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import types
from .host.compat import schema

if TYPE_CHECKING:
    from ..comparison.shown import ComparisonReport
    from ..report import OptimizationReport


class ShowReport(io.ComfyNode):
    """REPORT -> text on the node, and as a STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersShowReport",
            display_name="Show Report",
            category=types.CATEGORY,
            search_aliases=["report", "optimization report", "timing", "what is active"],
            inputs=[types.Report.Input("report"), io.Combo.Input("format", options=["table", "json"], default="table")],
            outputs=[io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report: OptimizationReport | ComparisonReport, format: str) -> io.NodeOutput:
        text = report.as_json() if format == "json" else report.as_table()
        shown = text if format == "json" else "\n".join(report.lines())
        # `shown` is for the box on the node (web/show_report.js), where lines are short and columns would break.
        return io.NodeOutput(text, ui={"text": (text,), "shown": (shown,)})
