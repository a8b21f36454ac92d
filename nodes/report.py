"""Show Report: what was asked for, what was really active, and why, as text."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..report import OptimizationReport
from . import comfy_bridge, types
from .compat import schema


class ShowReport(io.ComfyNode):
    """REPORT -> text on the node, and as a STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersShowReport",
            display_name="Show Report",
            category=types.CATEGORY,
            description="Shows what a run really used: every optimization as asked for and as applied, why they "
            "differ, what it cost, and how long each stage took.",
            search_aliases=["report", "optimization report", "timing", "what is active"],
            inputs=[
                types.Report.Input("report", tooltip="The report of a sampler, a decode or an encode."),
                io.Combo.Input(
                    "format",
                    options=["table", "json"],
                    default="table",
                    tooltip="'table' to read, 'json' to keep or to hand to another program.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="The report in the chosen format.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report: OptimizationReport, format: str) -> io.NodeOutput:
        comfy_bridge.NodeProgress(cls.hidden.unique_id).show_full_report(report)
        text = report.as_json() if format == "json" else report.as_table()
        return io.NodeOutput(text, ui=ui.PreviewText(text))
