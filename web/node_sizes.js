// New nodes are wide enough for their titles and for the names and values of their widgets, and high enough for a few
// lines in every box of text. Nodes of a saved workflow keep their size.

import { app } from "../../scripts/app.js";

const WIDTHS = {
  FastDiffusersLoadPipeline: 380,
  FastDiffusersLoadPipelineParts: 380,
  FastDiffusersLoadLora: 380,
  FastDiffusersLoadVideoVAE: 380,
  FastDiffusersQuantize: 380,
  FastDiffusersOptimizationSettings: 340,
  FastDiffusersTorchCompileSettings: 340,
  FastDiffusersVAEDecode: 340,
  FastDiffusersVAEEncode: 340,
};
const TITLE = { beside: 80, letter: 8 }; // pixels of a title: what is beside it, and each of its letters
const LINES = 60; // pixels that a box of text is higher than the editor's least, which is about two lines

app.registerExtension({
  name: "FastDiffusers.NodeSizes",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FastDiffusers")) return;
    const boxes = (node.widgets ?? []).filter((widget) => widget.type === "customtext").length;
    node.fastDiffusersExtraHeight = boxes * LINES;
    const title = TITLE.beside + TITLE.letter * (node.title ?? "").length;
    const width = Math.max(node.size[0], title, WIDTHS[node.comfyClass] ?? 0);
    // After the other extensions have had their turn: one of them hides what is advanced.
    queueMicrotask(() => node.graph || node.setSize([width, node.computeSize()[1] + boxes * LINES]));
    node.setSize([width, node.size[1] + boxes * LINES]);
  },
});
