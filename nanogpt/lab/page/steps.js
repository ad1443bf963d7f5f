// A heat map of a whole training: a row for each snapshot, and a column for each token. The colour is the surprise,
// which is -ln of the token's probability, in nats.

import { colour } from "./dom.js";

const MAP_WIDTH = 1000, MAP_LEFT = 130, MAP_TOP = 40, ROW = 15, FULL = 6;      // canvas pixels; nats of the full colour

// `frames` maps the index of a snapshot to its inspection. A row whose inspection has not arrived stays empty.
export function drawSteps(canvas, steps, frames, row, column) {
  const some = [...frames.values()].find(({ tokens }) => tokens);
  if (!some) return;
  const width = (MAP_WIDTH - MAP_LEFT) / some.tokens.length, context = canvas.getContext("2d");
  canvas.width = MAP_WIDTH;
  canvas.height = MAP_TOP + ROW * steps.length + 4;
  const fill = colour("surprise", "#"), ink = colour("ink", .8), accent = colour("surprise");
  context.font = "22px ui-monospace, monospace";
  context.textBaseline = "middle";
  some.tokens.forEach((token, t) => {
    context.fillStyle = t === column ? accent : ink;
    context.textAlign = "center";
    if (width > 12 || t === column) context.fillText(token.slice(0, 3), MAP_LEFT + (t + .5) * width, MAP_TOP / 2);
  });
  steps.forEach((step, i) => {
    const y = MAP_TOP + i * ROW, { probabilities = [] } = frames.get(i) ?? {};
    context.fillStyle = i === row ? accent : ink;
    context.textAlign = "right";
    if (i === row || i % 4 === 0 && Math.abs(i - row) > 1) context.fillText(step.toLocaleString("en"), MAP_LEFT - 8, y + ROW / 2);
    probabilities.forEach((p, t) => {
      context.fillStyle = fill.replace("#", Math.min(1, -Math.log(Math.max(p, 1e-4)) / FULL));
      context.fillRect(MAP_LEFT + (t + 1) * width, y, width, ROW);
    });
  });
  context.strokeStyle = colour("ink");
  context.lineWidth = 2;
  context.strokeRect(MAP_LEFT, MAP_TOP + row * ROW, MAP_WIDTH - MAP_LEFT - 1, ROW);
}

// The index of the snapshot and the index of the token under the pointer.
export function findStep(canvas, event, n_steps, n_tokens) {
  const box = canvas.getBoundingClientRect(), scale = MAP_WIDTH / box.width;
  const limit = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value)));
  return [limit(((event.clientY - box.top) * scale - MAP_TOP) / ROW, n_steps),
    limit(((event.clientX - box.left) * scale - MAP_LEFT) / (MAP_WIDTH - MAP_LEFT) * n_tokens, n_tokens)];
}
