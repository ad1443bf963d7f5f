// Small helpers that all pages share. Text from users always becomes a text node, never HTML.

export const percent = p => (100 * p).toFixed(p < .1 ? 2 : 1) + " %";
export const quoted = token => `“${token}”`;

export function element(tag, text, parent, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  parent?.append(node);
  return node;
}

export function svg(tag, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
}

// The value of a colour variable, with an opacity from 0 to 1.
export function colour(name, opacity = 1) {
  const rgb = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return `rgb(${rgb} / ${opacity})`;
}

// Let a click, Enter or Space do something.
export function makeButton(node, action) {
  node.tabIndex = 0;
  node.onclick = action;
  node.onkeydown = event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    action();
  };
}

export function shade(cell, strength) {        // the text colour contrasts with the shade
  cell.style.background = `rgb(var(--ink) / ${strength})`;
  const limit = matchMedia("(prefers-color-scheme: dark)").matches ? .46 : .57;
  cell.style.color = strength > limit ? "rgb(var(--paper))" : "";
}

// Colour a token by its surprise, -ln p, in nats; 6 nats or more have the full colour.
export function surprise(span, p) {
  const nats = -Math.log(Math.max(p, 1e-4));
  span.style.background = `rgb(var(--fill) / ${Math.min(1, nats / 6)})`;
  span.title = `${percent(p)}, ${nats.toFixed(1)} nats`;
}

export function showBars(parent, rows) {       // rows: [name, p, isActual, note]
  parent.replaceChildren(...rows.map(([name, p, isActual, note]) => {
    const bar = element("div", undefined, undefined, isActual ? "bar actual" : "bar");
    element("b", name, bar).title = name;
    element("i", "", bar).style.width = 100 * p + "%";
    element("span", percent(p) + (note ?? ""), bar);
    return bar;
  }));
}
