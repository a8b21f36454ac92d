"""JavaScript that `browser.py` runs in ComfyUI's editor; `%s` stands for what is filled in."""

STARTED = """
(() => {
  const app = window.app, workflow = app?.extensionManager?.workflow;
  return !!(app?.graph && window.LiteGraph && workflow?.activeWorkflow && !workflow.isBusy);
})()
"""
COUNT_REQUESTS = """
(() => {
  window.requestsOpen = 0;
  const here = url => new URL(url, location.href).origin == location.origin;
  const fetched = window.fetch, sent = XMLHttpRequest.prototype.send, opened = XMLHttpRequest.prototype.open;
  window.fetch = (...given) => {
    const answer = fetched(...given);
    if (here(given[0]?.url ?? given[0])) {
      window.requestsOpen++;
      answer.catch(() => {}).finally(() => window.requestsOpen--);
    }
    return answer;
  };
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    this.counted = here(url);
    return opened.call(this, method, url, ...rest);
  };
  XMLHttpRequest.prototype.send = function (...given) {
    if (this.counted) {
      window.requestsOpen++;
      this.addEventListener('loadend', () => window.requestsOpen--, { once: true });
    }
    return sent.apply(this, given);
  };
})()
"""
"""Runs before the page's own scripts: how many requests to ComfyUI it still waits for.

After a graph is loaded the editor asks which models there are, and marks nodes by their numbers when the answer comes,
even if another graph is on the canvas by then.
"""
SETTLED = """
(async () => {
  const look = () => JSON.stringify([
    window.app.graph.nodes.map(n => [n.id, ...n.pos, ...n.size]),
    [...window.app.canvas.ds.offset, window.app.canvas.ds.scale],
    document.body.innerText.length, document.querySelectorAll('[data-node-id]').length,
  ]);
  const frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)));
  const give_up = Date.now() + %d * 1000;
  for (let last = '', same = 0; same < %d;) {
    await frame();
    const now = look();
    same = now == last && !window.requestsOpen ? same + 1 : 0;
    last = now;
    if (Date.now() > give_up) return false;
  }
  return true;
})()
"""
CALM = 6
"""Frames in a row, at least 50 ms apart, in which nothing moves, appears or is waited for before a page is settled."""
LOAD = "(async () => { await window.app.loadGraphData(%s); })()"
BOUNDS = """
(() => {
  const boxes = [
    ...window.app.graph.nodes.map(n => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]),
    ...window.app.graph.groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]),
  ];
  return {
    left: Math.min(...boxes.map(b => b[0])), top: Math.min(...boxes.map(b => b[1])),
    right: Math.max(...boxes.map(b => b[2])), bottom: Math.max(...boxes.map(b => b[3])),
  };
})()
"""
LOOK = """
(() => window.app.graph.nodes.map(n => ({
  id: String(n.id), type: n.type, title: n.title, pos: [...n.pos], size: [...n.size],
  minimum: [...n.computeSize()],
  missing: !(n.type in LiteGraph.registered_node_types),
  errors: !!n.has_errors,
  widgets: (n.widgets ?? []).map(w => ({ name: w.name, value: w.value })),
  unlinked: (n.inputs ?? []).filter(i => i.link == null && !i.widget).map(i => i.name),
})))()
"""
ADD = """
(async () => {
  const graph = window.app.graph, last = graph.last_node_id;
  graph.clear();
  graph.last_node_id = last;  // the editor remembers values by the node's number
  %s.forEach((type, index) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [600 * index, 0];
    graph.add(node);
  });
})()
"""
BOX = """
(() => {
  const node = window.app.graph.nodes.find(n => n.id == %s), canvas = window.app.canvas;
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  if (element) {
    const box = element.getBoundingClientRect();
    return { x: box.x, y: box.y, width: box.width, height: box.height };
  }
  const area = canvas.canvas.getBoundingClientRect(), scale = canvas.ds.scale, title = 30;
  return {
    x: area.x + (node.pos[0] + canvas.ds.offset[0]) * scale,
    y: area.y + (node.pos[1] - title + canvas.ds.offset[1]) * scale,
    width: node.size[0] * scale, height: (node.size[1] + title) * scale,
  };
})()
"""
HELP = """
(async () => {
  window.app.canvas.deselectAll();
  window.app.canvas.selectNode(window.app.graph.nodes[0]);
  const wait = async find => {
    for (let i = 0; i < 600; i++) {
      const found = find();
      if (found) return found;
      await new Promise(done => setTimeout(done, 100));
    }
  };
  (await wait(() => document.querySelector('[data-testid=info-button]')))?.click();
  return !!(await wait(() => document.querySelector('%s')));
})()
"""
RUN = """
(async () => {
  const api = window.app.api;
  const over = new Promise((done, fail) => {
    api.addEventListener('execution_success', done, { once: true });
    api.addEventListener('execution_error', event => fail(event.detail.exception_message), { once: true });
  });
  await window.app.queuePrompt(0);
  return (await over).detail.prompt_id;
})()
"""
