// Show Report: the text that the node puts out, in a box on the node that wraps and scrolls.

import { app } from "../../scripts/app.js";

const NODE = "FastDiffusersShowReport";
const MINIMUM_HEIGHT = 120;
const SIZE = [420, 400];

const BOX = { position: "relative", width: "100%", height: "100%", minHeight: `${MINIMUM_HEIGHT}px` };
const TEXT = {
  position: "absolute", // so that a long report scrolls, and the node keeps the size that the user gave it
  inset: "0",
  boxSizing: "border-box",
  padding: "6px 8px",
  borderRadius: "6px",
  overflow: "hidden auto",
  whiteSpace: "pre-wrap",
  overflowWrap: "anywhere",
  font: "11px/1.45 ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
  color: "var(--input-text)",
  background: "var(--comfy-input-bg)",
  userSelect: "text",
};

function element(className, style) {
  const made = document.createElement("div");
  made.className = className;
  Object.assign(made.style, style);
  return made;
}

// One line as an element of its own, so that what wraps stays indented.
function lineOf(text) {
  const line = element("", { paddingLeft: `${text.search(/\S|$/) + 2}ch`, textIndent: "-2ch", minHeight: "1.45em" });
  line.textContent = text.trimStart();
  return line;
}

app.registerExtension({
  name: "FastDiffusers.ShowReport",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const box = element("", BOX);
    const text = element("fastdiffusers-report", TEXT);
    text.tabIndex = 0; // can be selected and copied, and scrolled with the keys
    text.dataset.captureWheel = "true"; // over the box the wheel scrolls the text, not the canvas
    box.append(text);
    let shown = "";
    const widget = node.addDOMWidget("shown", "report", box, {
      getValue: () => shown,
      setValue: (value) => text.replaceChildren(...(shown = value ?? "").split("\n").map(lineOf)),
      getMinHeight: () => MINIMUM_HEIGHT,
      hideOnZoom: false,
      serialize: false, // not sent to the server
    });
    widget.serialize = false; // nor saved with the workflow
    node.setSize(SIZE.map((least, side) => Math.max(least, node.size[side])));
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      widget.value = (output?.shown ?? output?.text ?? []).join("\n");
    };
  },
});
