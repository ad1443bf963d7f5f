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

// The lines of the n-grams for the loss curves; `baselines` is the server's answer, undefined before it arrives.
export function baselineRules(run, baselines) {
  const rules = [{ name: "bigram", y: run.bigram_loss }];
  if (baselines?.ngram_loss) rules.push({ name: `${baselines.n}-grams`, y: baselines.ngram_loss });
  return rules;
}

// A line without a name has no label. `rules` are horizontal lines: { name, y }; `lowest` is the start of the y axis,
// `marker` the x of a vertical line. `onPick(x)` is called when
// the chart is clicked.
export function drawLines(chart, options) {
  drawn.set(chart, options);
  observer.observe(chart);
  draw(chart, options);
}

// A chart is drawn again if its width changes, so that its letters keep their size.
const drawn = new WeakMap();
const observer = new ResizeObserver(entries => entries.forEach(({ target }) => draw(target, drawn.get(target))));

function draw(chart, { series, rules = [], x, y, logarithmic = false, lowest, marker, onPick }) {
  const WIDTH = Math.min(MAX_WIDTH, chart.clientWidth || MAX_WIDTH);
  chart.replaceChildren();
  chart.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  chart.setAttribute("role", "img");
  const points = series.flatMap(line => line.points);
  if (!points.length) {
    svg("text", { x: LEFT, y: HEIGHT / 2 }, chart, "no measurements yet");
    return;
  }
  const map = logarithmic ? value => Math.log(Math.max(1, value)) : value => value;
  const xs = points.map(point => map(point[0]));
  if (logarithmic) xs.push(0);                         // from step 1 on
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
  const highest = Math.max(...points.map(point => point[0]));
  const ticks = logarithmic ? [1, 10, 100, 1000, 10000, 100000].filter(tick => tick <= highest)
    : niceTicks(x0, x1, WIDTH / 120);
  for (const tick of ticks)
    svg("text", { x: toX(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, chart, tick.toLocaleString("en"));
  svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis" }, chart);
  svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, chart, x);
  svg("text", { x: -HEIGHT / 2, y: 13, transform: "rotate(-90)", "text-anchor": "middle" }, chart, y);
  const labels = [];
  for (const { name, y: value } of rules) {
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(value), y2: toY(value), class: "rule",
      stroke: "rgb(var(--ink) / .5)", "stroke-dasharray": "2 4" }, chart);
    labels.push([toY(value), name, "ink"]);
  }
  for (const { name, points: line, colour, dashes = "", opacity = 1 } of series) {
    if (!line.length) continue;
    const path = line.map(([px, py], i) => `${i ? "L" : "M"}${toX(px).toFixed(1)},${toY(py).toFixed(1)}`).join("");
    svg("path", { d: path, stroke: `rgb(var(--${colour}) / ${opacity})`, "stroke-dasharray": dashes }, chart);
    if (name) labels.push([toY(line.at(-1)[1]), name, colour]);
  }
  labels.sort((a, b) => a[0] - b[0]);
  let above = -Infinity;
  for (const [place, name, colour] of labels) {        // move labels apart
    above = Math.max(place, above + 14);
    svg("text", { x: WIDTH - RIGHT + 6, y: above + 4, fill: `rgb(var(--${colour}))` }, chart, name);
  }
  if (marker !== undefined)
    svg("line", { x1: toX(marker), x2: toX(marker), y1: TOP, y2: HEIGHT - BOTTOM, class: "marker" }, chart);
  chart.onclick = onPick && (event => {
    const box = chart.getBoundingClientRect();
    const place = ((event.clientX - box.left) * WIDTH / box.width - LEFT) / (WIDTH - LEFT - RIGHT);
    const value = x0 + Math.min(1, Math.max(0, place)) * (x1 - x0);
    onPick(logarithmic ? Math.exp(value) : value);
  });
}
