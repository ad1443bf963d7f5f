// Draws attention weights as heat maps. `rows[t]` has the weights of position t on positions 0 to t.

import { colour } from "./dom.js";

const SIDE = 1100, MARGIN = 70;                // size of the large map, in canvas pixels
const LETTER = 11;                             // smallest height of its letters, in pixels of the screen

function drawCells(context, rows, size) {
  const ink = colour("ink", "#");
  rows.forEach((row, t) => row.forEach((weight, s) => {
    context.fillStyle = ink.replace("#", Math.sqrt(weight));   // so that small weights are visible
    context.fillRect(s * size, t * size, size, size);
  }));
}

export function drawSmall(canvas, rows) {
  canvas.width = canvas.height = rows.length;
  drawCells(canvas.getContext("2d"), rows, 1);
}

export function drawLarge(canvas, rows, tokens, position) {
  canvas.width = canvas.height = SIDE;
  const size = (SIDE - MARGIN) / rows.length, context = canvas.getContext("2d");
  context.translate(MARGIN, MARGIN);
  drawCells(context, rows, size);
  context.strokeStyle = colour("ink", .3);
  context.strokeRect(0, 0, rows.length * size, rows.length * size);
  const accent = colour("surprise");
  context.strokeStyle = accent;
  context.lineWidth = 3;
  context.strokeRect(0, position * size, (position + 1) * size, size);
  const font = Math.max(Math.min(26, size * .8), LETTER * SIDE / (canvas.clientWidth || SIDE));
  const every = Math.ceil(font / size), length = Math.floor((MARGIN - 6) / (.6 * font));
  context.font = `${font}px ui-monospace, monospace`;
  tokens.forEach((token, t) => {
    const isSelected = t === position;         // always has a label; the others, if there is room
    if (!isSelected && (t % every || Math.abs(t - position) < every)) return;
    context.fillStyle = isSelected ? accent : colour("ink", .8);
    context.textAlign = "right"; context.textBaseline = "middle";
    context.fillText(token.slice(0, length), -6, (t + .5) * size);
    context.save();
    context.translate((t + .5) * size, -6); context.rotate(-Math.PI / 2); context.textAlign = "left";
    context.fillText(token.slice(0, length), 0, 0);
    context.restore();
  });
}

// The row t and the column s of the large map under the pointer; undefined outside.
export function findCell(canvas, event, T) {
  const box = canvas.getBoundingClientRect(), size = (SIDE - MARGIN) / T;
  const [s, t] = [event.clientX - box.left, event.clientY - box.top]
    .map(x => Math.floor((x * SIDE / box.width - MARGIN) / size));
  return s >= 0 && t >= 0 && s <= t && t < T ? { t, s } : undefined;
}
