// ComfyUI shows what a node's check of its inputs says below "Custom validation failed for node", once for every input
// that the check looks at, and shows no more than that heading where space is short. For this pack's nodes the text
// itself takes the place of the heading, once. Newer editors show a sentence of their own instead, and the text behind
// a click: there it comes as a message beside it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TYPE = "custom_validation_failed";
const SEPARATOR = " - "; // between the input and the text
const PATIENCE = 1500; // milliseconds that the editor has to show an error by itself
const LIFE = 30000; // milliseconds that a message stays

function ours(nodeType) {
  return nodeType?.startsWith("FastDiffusers") ?? false;
}

function tidy(nodeErrors) {
  const texts = [];
  for (const node of Object.values(nodeErrors ?? {})) {
    if (!ours(node.class_type)) continue;
    const seen = new Set();
    node.errors = node.errors.filter((error) => {
      const start = error.details?.indexOf(SEPARATOR) ?? -1;
      if (error.type !== TYPE || start < 0) return true;
      const text = error.details.slice(start + SEPARATOR.length);
      if (seen.has(text)) return false;
      seen.add(text);
      error.message = text;
      error.details = "";
      return true;
    });
    texts.push(...seen);
  }
  return texts;
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
