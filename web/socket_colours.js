// The pack's own sockets and links have colours. The editor empties the colour of a type that its palette does not know
// whenever a palette is loaded, so an empty one is not taken.

import { app } from "../../scripts/app.js";

const COLOURS = {
  FASTDIFFUSERS_PIPELINE: "#b58bff",
  FASTDIFFUSERS_VIDEO_VAE: "#ff8a65",
  FASTDIFFUSERS_COMPILE_SETTINGS: "#4fc3a1",
  FASTDIFFUSERS_OPTIMIZATION_SETTINGS: "#e0b84c",
  FASTDIFFUSERS_CONDITIONS: "#ffa931",
  FASTDIFFUSERS_CONTROLNET: "#6ee7b7",
  FASTDIFFUSERS_REPORT: "#d98fa6",
};

function keep(table, type, colour) {
  if (!table) return;
  let shown = colour;
  Object.defineProperty(table, type, {
    get: () => shown,
    set: (value) => (shown = value || colour),
    configurable: true,
    enumerable: true,
  });
}

app.registerExtension({
  name: "FastDiffusers.SocketColours",
  setup() {
    const style = document.createElement("style");
    const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    style.textContent = `:root { ${rules.join(" ")} }`; // for Nodes 2.0
    document.head.append(style);
    for (const [type, colour] of Object.entries(COLOURS)) {
      keep(app.canvas?.default_connection_color_byType, type, colour);
      keep(window.LGraphCanvas?.link_type_colors, type, colour);
    }
  },
});
