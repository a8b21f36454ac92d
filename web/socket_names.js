// The editor calls a socket that grows by its English name, even where a translation of it is there: that goes first.

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "FastDiffusers.SocketNames",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("FastDiffusers")) return;
    const before = nodeType.prototype.onInputAdded;
    nodeType.prototype.onInputAdded = function (input) {
      before?.apply(this, arguments);
      const translated = input.localized_name;
      if (input.name.includes(".") && translated && translated !== input.name) input.label = translated;
    };
  },
});
