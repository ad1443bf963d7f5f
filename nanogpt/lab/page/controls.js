// Form controls with labels.

import { element } from "./dom.js";

export function field(parent, label, options = {}, onInput) {
  const box = element("label", undefined, parent);
  const name = element("span", label, box), input = element("input", undefined, box);
  Object.assign(input, options);
  if (onInput) input.oninput = () => onInput(input.value);
  return Object.assign(input, { caption: name });
}

export function choose(parent, label, values, onChange) {
  const box = element("label", undefined, parent);
  element("span", label, box);
  const select = element("select", undefined, box);
  setChoices(select, values);
  select.onchange = () => onChange?.(select.value);
  return select;
}

// Each of `values` is [value, text] or a text. The chosen value stays chosen if it is one of them.
export function setChoices(select, values) {
  const chosen = select.value;
  const options = values.map(value => Array.isArray(value) ? value : [value, value]);
  const key = JSON.stringify(options);
  if (select.dataset.key === key) return;
  select.dataset.key = key;
  select.replaceChildren(...options.map(([value, text]) => {
    const option = element("option", text);
    option.value = value;
    return option;
  }));
  if (options.some(([value]) => String(value) === chosen)) select.value = chosen;
}

export function button(parent, text, onClick, className) {
  const node = element("button", text, parent, className);
  node.type = "button";
  node.onclick = onClick;
  return node;
}

// The field for the prompt. All views share the prompt.
export function promptField(parent, lab, onInput) {
  const input = field(element("div", undefined, parent, "row"), "Prompt (↵ stands for a line break)",
    { value: lab.prompt.replaceAll("\n", "↵"), className: "prompt text", spellcheck: false });
  input.readOnly = lab.isSaved;
  input.oninput = () => { lab.setPrompt(input.value.replaceAll("↵", "\n")); onInput(); };
  return input;
}

export const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

// Colour a token by a difference of losses: orange if it is positive, grey if it is negative; 3 nats or more have
// the full colour.
export function tint(span, nats) {
  const strength = Math.min(1, Math.abs(nats) / 3);
  span.style.background = nats > 0 ? `rgb(var(--fill) / ${strength})` : `rgb(var(--ink) / ${strength * .38})`;
}

// Explains the colours of tint().
export function tintLegend(parent, negative, positive) {
  const legend = element("div", undefined, parent, "legend tints");
  legend.replaceChildren(negative, element("i"), `${positive} (3 nats or more)`);
}
