// A sampler or decode that is bypassed or muted runs nothing, and the editor says nothing of it: what it would have made
// is just not there. So a message says so when the graph is run while something is connected to its outputs.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const MAKERS = new Set(["FastDiffusersSampler", "FastDiffusersVAEDecode", "FastDiffusersBenchmark"]);
const STATES = { 2: "muted", 4: "bypassed" };
const LIFE = 15000; // milliseconds that a message stays

function say(node) {
  const wanted = (node.outputs ?? []).filter((output) => output.links?.length).map((output) => output.name);
  if (!wanted.length) return;
  const detail = `${node.title} is ${STATES[node.mode]}: it runs nothing, and gives no ${wanted.join(", ")}.`;
  app.extensionManager?.toast?.add({ severity: "warn", summary: "FastDiffusers", detail, life: LIFE });
}

app.registerExtension({
  name: "FastDiffusers.BypassedNodes",
  setup() {
    const queuePrompt = api.queuePrompt;
    api.queuePrompt = function (...args) {
      (app.graph?.nodes ?? []).filter((node) => MAKERS.has(node.comfyClass) && STATES[node.mode]).forEach(say);
      return queuePrompt.apply(this, args);
    };
  },
});
