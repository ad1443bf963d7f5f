// Labelled controls of the views.

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

// values: [value, text] or text; the chosen value stays chosen if it is still there.
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

// The text that the models see. All views share it.
export function promptField(parent, lab, onInput) {
  const input = field(element("div", undefined, parent, "row"), "Prompt (↵ stands for a line break)",
    { value: lab.prompt.replaceAll("\n", "↵"), className: "prompt text", spellcheck: false });
  input.readOnly = lab.isSaved;
  input.oninput = () => { lab.setPrompt(input.value.replaceAll("↵", "\n")); onInput(); };
  return input;
}
