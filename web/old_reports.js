// What a node still shows of an earlier run, after one that was cancelled or failed before its turn came, says so.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const SHOWN = ["shown", "$$node-text-preview"]; // the box of Show Report, and the text that a node shows of its run
const OLD = "(of an earlier run)";
const BREAK = "  \n"; // a line break in Markdown too

const reached = new Set(); // nodes of this run whose turn came, or whose result is still the one that is shown

function mark() {
  for (const node of app.graph?.nodes ?? []) {
    if (!node.comfyClass?.startsWith("FastDiffusers") || reached.has(String(node.id))) continue;
    for (const widget of node.widgets ?? []) {
      if (!SHOWN.includes(widget.name) || !widget.value || widget.value.startsWith(OLD)) continue;
      widget.value = `${OLD}${BREAK}${widget.value}`;
    }
  }
  app.graph?.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "FastDiffusers.OldReports",
  setup() {
    api.addEventListener("execution_start", () => reached.clear());
    api.addEventListener("execution_cached", ({ detail }) => detail.nodes.forEach((id) => reached.add(String(id))));
    api.addEventListener("executing", ({ detail }) => reached.add(String(detail?.node ?? detail)));
    api.addEventListener("progress_state", ({ detail }) => Object.keys(detail.nodes).forEach((id) => reached.add(id)));
    api.addEventListener("execution_interrupted", mark);
    api.addEventListener("execution_error", mark);
  },
});
