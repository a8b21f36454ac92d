// ComfyUI shows what a node's check of its inputs says below "Custom validation failed for node", once for every input
// that the check looks at, and shows no more than that heading where space is short. For this pack's nodes the text
// itself takes the place of the heading, once.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TYPE = "custom_validation_failed";
const SEPARATOR = " - "; // between the input and the text

function tidy(nodeErrors) {
  for (const node of Object.values(nodeErrors ?? {})) {
    if (!node.class_type?.startsWith("FastDiffusers")) continue;
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
  }
}

app.registerExtension({
  name: "FastDiffusers.ErrorTexts",
  setup() {
    const queuePrompt = api.queuePrompt;
    api.queuePrompt = async function (...args) {
      try {
        const answer = await queuePrompt.apply(this, args);
        tidy(answer?.node_errors);
        return answer;
      } catch (error) {
        tidy(error?.response?.node_errors);
        throw error;
      }
    };
  },
});
