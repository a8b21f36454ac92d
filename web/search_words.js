// In the editor's search a node's aliases count for less than any name that the word appears in, so that the node which
// loads Flux comes behind twenty that are called Flux something. A word that is exactly an alias of a node of this pack
// brings that node up: a model's name brings the loader to the top, any other word its node among the first three.

import { app } from "../../scripts/app.js";

const LOADER = "FastDiffusersLoadPipeline";
const MODELS = new Set(["flux", "sdxl", "wan"]);
const AMONG_THE_FIRST = 2; // the third place

function store() {
  return document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s?.get("nodeDef");
}

function broughtUp(found, query) {
  const word = query.trim().toLowerCase();
  const meant = (node) => node.name.startsWith("FastDiffusers") && node.search_aliases?.includes(word);
  const at = MODELS.has(word) ? found.findIndex((node) => node.name === LOADER) : found.findIndex(meant);
  const place = MODELS.has(word) ? 0 : AMONG_THE_FIRST;
  if (at <= place) return found;
  const others = found.filter((_, index) => index !== at);
  return [...others.slice(0, place), found[at], ...others.slice(place)];
}

app.registerExtension({
  name: "FastDiffusers.SearchWords",
  setup() {
    const service = store()?.nodeSearchService;
    const kind = service && Object.getPrototypeOf(service);
    const search = kind?.searchNode;
    if (!search) return; // an editor that searches in another way does it alone
    kind.searchNode = function (query, filters, options, ...rest) {
      const all = search.call(this, query, filters, undefined, ...rest);
      const found = typeof query === "string" ? broughtUp(all, query) : all;
      return options?.limit ? found.slice(0, options.limit) : found;
    };
  },
});
