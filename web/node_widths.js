// New nodes are wide enough for the names and values of their widgets. Nodes of a saved workflow keep their size.

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

app.registerExtension({
  name: "FastDiffusers.NodeWidths",
  nodeCreated(node) {
    const width = WIDTHS[node.comfyClass];
    if (width > node.size[0]) node.setSize([width, node.size[1]]);
  },
});
