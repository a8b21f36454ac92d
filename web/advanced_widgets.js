// Advanced widgets of this pack's nodes stay out of sight until they are asked for. With Nodes 2.0 the editor does that
// by itself; on the canvas it does not, so there a button below the others shows and hides them, and names those that
// are not at their defaults. What is linked stays in sight.

import { app } from "../../scripts/app.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";
const TEXTS = {
  show: ["rightSidePanel.showAdvancedInputsButton", "Show advanced inputs"],
  hide: ["rightSidePanel.hideAdvancedInputsButton", "Hide advanced inputs"],
};

function text([key, english]) {
  const found = document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$t?.(key);
  return !found || found === key ? english : found;
}

function drawnByThePage() {
  return window.LiteGraph.vueNodesMode === true;
}

function defaultOf(node, name) {
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  return ({ ...required, ...optional }[name] ?? [])[1]?.default;
}

function linked(node, name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false;
}

app.registerExtension({
  name: "FastDiffusers.AdvancedWidgets",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FastDiffusers")) return;
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    if (!advanced.length) return;
    const fit = () => node.setSize([node.size[0], node.computeSize()[1] + (node.fastDiffusersExtraHeight ?? 0)]);
    const always = () => app.extensionManager?.setting?.get(ALWAYS) === true;
    for (const widget of advanced) {
      Object.defineProperty(widget, "hidden", {
        get: () => !drawnByThePage() && !node.showAdvanced && !linked(node, widget.name) && !always(),
        set: () => {},
        configurable: true,
        enumerable: true,
      });
    }
    const button = node.addWidget("button", "show_advanced", null, () => {
      node.showAdvanced = !node.showAdvanced;
      fit();
      node.setDirtyCanvas(true, true);
    });
    button.serialize = false; // not saved with the workflow
    button.options.serialize = false; // nor sent to the server
    for (const place of [button, button.options]) {
      Object.defineProperty(place, "hidden", {
        get: () => drawnByThePage() || always(),
        set: () => {},
        configurable: true,
        enumerable: true,
      });
    }
    Object.defineProperty(button, "label", {
      get: () => {
        if (node.showAdvanced) return text(TEXTS.hide);
        const changed = advanced.filter((widget) => widget.value !== defaultOf(node, widget.name));
        return text(TEXTS.show) + (changed.length ? `: ${changed.map((widget) => widget.name).join(", ")}` : "");
      },
      set: () => {},
      configurable: true,
    });
    fit(); // whichever extension has its turn first
  },
});
