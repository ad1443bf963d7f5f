// Line charts as SVG. A series has a name, points [x, y], a colour variable, and perhaps dashes.

import { svg } from "./dom.js";

const MAX_WIDTH = 900, HEIGHT = 320, LEFT = 56, RIGHT = 120, TOP = 12, BOTTOM = 40;

export function niceTicks(low, high, count = 5) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) ticks.push(tick);
  return ticks;
}

// The horizontal lines of the n-grams in a chart of the loss. `baselines` is an answer of the server, or undefined.
export function baselineRules(run, baselines) {
  const rules = run.bigram_loss === null ? [] : [{ name: "bigram", y: run.bigram_loss }];
  if (baselines?.ngram_loss) rules.push({ name: `${baselines.n}-grams`, y: baselines.ngram_loss });
  return rules;
}

// A series without a name has no label. `rules` are horizontal lines: { name, y }. `lowest` is the start of the y
// axis, `until` is the end of the x axis, and `marker` is the x of a vertical line. A click calls onPick(x).
export function drawLines(chart, options) {
  const isNew = !drawn.has(chart);
  drawn.set(chart, options);
  if (isNew) observer.observe(chart);                  // each call draws the chart once more
  else draw(chart, options);
}

// If the width of a chart changes, the chart is drawn again, so that the size of its letters stays the same.
const drawn = new WeakMap();
const observer = new ResizeObserver(entries => entries.forEach(({ target }) => draw(target, drawn.get(target))));

function draw(chart, { series, rules = [], x, y, logarithmic = false, lowest, until, marker, onPick }) {
  const WIDTH = Math.min(MAX_WIDTH, chart.clientWidth || MAX_WIDTH);
  chart.replaceChildren();
  chart.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", `${y} over ${x}`);
  const points = series.flatMap(line => line.points);
  if (!points.length) {
    svg("text", { x: LEFT, y: HEIGHT / 2 }, chart, "no measurements yet");
    return;
  }
  const map = logarithmic ? value => Math.log(Math.max(1, value)) : value => value;
  const xs = [...points.map(point => point[0]), ...(until ? [until] : [])].map(map);
  if (logarithmic) xs.push(0);                         // the axis starts at step 1
  const ys = [...points.map(point => point[1]), ...rules.map(rule => rule.y)];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs, Math.min(...xs) + 1e-9)];
  const pad = (Math.max(...ys) - Math.min(...ys) || 1) * .04;
  const [y0, y1] = [lowest ?? Math.min(...ys) - pad, Math.max(...ys) + pad];
  const toX = value => LEFT + (map(value) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
  const toY = value => TOP + (y1 - value) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  for (const tick of niceTicks(y0, y1)) {
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(tick), y2: toY(tick), class: "grid" }, chart);
    svg("text", { x: LEFT - 6, y: toY(tick) + 4, "text-anchor": "end" }, chart, +tick.toFixed(4));
  }
  const highest = Math.max(until ?? 0, ...points.map(point => point[0]));
  const ticks = logarithmic ? [1, 10, 100, 1000, 10000, 100000].filter(tick => tick <= highest)
    : niceTicks(x0, x1, WIDTH / 120);
  for (const tick of ticks)
    svg("text", { x: toX(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, chart, tick.toLocaleString("en"));
  svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis" }, chart);
  svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, chart, x);
  svg("text", { x: -HEIGHT / 2, y: 13, transform: "rotate(-90)", "text-anchor": "middle" }, chart, y);
  const labels = rules.map(({ name, y: value }) => {
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(value), y2: toY(value), class: "rule",
      stroke: "rgb(var(--ink) / .5)", "stroke-dasharray": "2 4" }, chart);
    return { x: WIDTH - RIGHT, y: toY(value), name, colour: "ink" };
  });
  for (const { name, points: line, colour, dashes = "", opacity = 1 } of series) {
    if (!line.length) continue;
    const stroke = `rgb(var(--${colour}) / ${opacity})`, [lastX, lastY] = line.at(-1);
    const path = line.map(([px, py], i) => `${i ? "L" : "M"}${toX(px).toFixed(1)},${toY(py).toFixed(1)}`).join("");
    svg("path", { d: path, stroke, "stroke-dasharray": dashes }, chart);
    if (line.length === 1) svg("circle", { cx: toX(lastX), cy: toY(lastY), r: 3, fill: stroke }, chart);
    if (name) labels.push({ x: toX(lastX), y: toY(lastY), name, colour });
  }
  placeLabels(labels, HEIGHT - BOTTOM - 4);
  for (const label of labels)
    svg("text", { x: label.x + 6, y: label.y + 4, class: "label", fill: `rgb(var(--${label.colour}))` }, chart, label.name);
  if (marker !== undefined)
    svg("line", { x1: toX(marker), x2: toX(marker), y1: TOP, y2: HEIGHT - BOTTOM, class: "marker" }, chart);
  chart.onclick = onPick && (event => {
    const box = chart.getBoundingClientRect();
    const place = ((event.clientX - box.left) * WIDTH / box.width - LEFT) / (WIDTH - LEFT - RIGHT);
    const value = x0 + Math.min(1, Math.max(0, place)) * (x1 - x0);
    onPick(logarithmic ? Math.exp(value) : value);
  });
}

// Move labels apart that stand at about the same x, and none below `bottom`.
function placeLabels(labels, bottom) {
  labels.sort((a, b) => a.y - b.y);
  const isNear = (a, b) => Math.abs(a.x - b.x) < RIGHT;
  labels.forEach((label, i) => labels.slice(0, i).filter(other => isNear(label, other))
    .forEach(other => { label.y = Math.max(label.y, other.y + 14); }));
  for (let i = labels.length - 1; i >= 0; i--)
    labels[i].y = Math.min(labels[i].y, bottom, ...labels.slice(i + 1).filter(other => isNear(labels[i], other))
      .map(other => other.y - 14));
}
