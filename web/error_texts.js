// ComfyUI shows what a node's check of its inputs says below "Custom validation failed for node", once for every input
// that the check looks at, and shows no more than that heading where space is short. For this pack's nodes the text
// itself takes the place of the heading, once, and is shown on the node too, whole. Newer editors show a sentence of
// their own instead, and the text behind a click: there it comes as a message beside it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const CHECKED = "custom_validation_failed";
const UNCONNECTED = "required_input_missing";
const SEPARATOR = " - "; // between the input and the text
const PATIENCE = 1500; // milliseconds that the editor has to show an error by itself
const LIFE = 30000; // milliseconds that a message stays
const SHOWN = "$$node-text-preview"; // the text that the editor shows on a node
const CONNECT = {
  pipeline: "Load Diffusers Pipeline",
  samples: "a LATENT",
  pixels: "an IMAGE",
  vae: "a VAE, a video VAE or a pipeline",
  report: "the report of a sampler, a decode, an encode or a benchmark",
};

const told = new Set(); // nodes that show what their check said

function ours(nodeType) {
  return nodeType?.startsWith("FastDiffusers") ?? false;
}

function find(id) {
  return app.graph?.nodes.find((node) => String(node.id) === String(id));
}

function textOf(error) {
  if (error.type === CHECKED) {
    const start = error.details?.indexOf(SEPARATOR) ?? -1;
    return start < 0 ? null : error.details.slice(start + SEPARATOR.length);
  }
  const input = error.extra_info?.input_name ?? error.details;
  return error.type === UNCONNECTED && CONNECT[input]
    ? `${input}: Connect ${CONNECT[input]}. Reason: nothing is connected.`
    : null;
}

function tidy(nodeErrors) {
  const texts = [];
  for (const [id, node] of Object.entries(nodeErrors ?? {})) {
    if (!ours(node.class_type)) continue;
    const seen = new Set();
    node.errors = node.errors.filter((error) => {
      const text = textOf(error);
      if (text === null) return true;
      if (seen.has(text)) return false;
      seen.add(text);
      error.message = text;
      error.details = "";
      return true;
    });
    texts.push(...seen);
    if (seen.size) showOnTheNode(id, [...seen].join("\n"));
  }
  return texts;
}

function showOnTheNode(id, text) {
  told.add(id);
  api.dispatchCustomEvent("progress_text", { nodeId: id, text });
}

function takeOff(id) {
  const node = find(id);
  const index = node?.widgets?.findIndex((widget) => widget.name === SHOWN) ?? -1;
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
}

function showWhatTheEditorDoesNot(texts) {
  setTimeout(() => {
    for (const text of texts) {
      if (document.body.innerText.includes(text)) continue;
      app.extensionManager?.toast?.add({ severity: "error", summary: "FastDiffusers", detail: text, life: LIFE });
    }
  }, PATIENCE);
}

app.registerExtension({
  name: "FastDiffusers.ErrorTexts",
  setup() {
    const queuePrompt = api.queuePrompt;
    api.queuePrompt = async function (...args) {
      told.forEach(takeOff);
      told.clear();
      try {
        const answer = await queuePrompt.apply(this, args);
        showWhatTheEditorDoesNot(tidy(answer?.node_errors));
        return answer;
      } catch (error) {
        showWhatTheEditorDoesNot(tidy(error?.response?.node_errors));
        throw error;
      }
    };
    api.addEventListener("execution_error", ({ detail }) => {
      if (!ours(detail?.node_type)) return;
      showWhatTheEditorDoesNot([`${detail.exception_type}: ${detail.exception_message.trim()}`]);
    });
  },
});
