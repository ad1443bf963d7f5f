import { element, percent } from "./dom.js";
import { Asker, generate } from "./api.js";
import { button, field, promptField } from "./controls.js";

// [name, label, lowest, highest, step, value that switches the filter off]
const SETTINGS = [
  ["temperature", "Temperature", 0, 2, .05, undefined],
  ["top_k", "Top-k", 1, 65, 1, 65],
  ["top_p", "Top-p", .01, 1, .01, 1],
  ["min_p", "Min-p", 0, 1, .01, 0],
];

export class Generate {
  static title = "Generate";
  static hint = "Move the sliders and see which next tokens remain. Grey is the model's probability; orange is the " +
    "probability after temperature and filters. Then generate. At a low temperature, the text repeats itself; " +
    "at a high one, words are misspelled.";
  static lessons = [11];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("generate");
    promptField(parent, lab, () => this.show());
    const columns = element("div", undefined, parent, "columns");
    const left = element("div", undefined, columns), right = element("div", undefined, columns);
    this.inputs = SETTINGS.map(([name, label, min, max, step, off]) => {
      const value = off ?? .8, row = element("div", undefined, left, "row");
      const input = field(row, label, { type: "range", min, max, step, value }, () => this.show());
      input.value = value;
      return [name, label, input, off];
    });
    const row = element("div", undefined, left, "row");
    this.seed = field(row, "Seed", { type: "number", min: 0, value: 1337 });
    this.count = field(row, "Tokens", { type: "number", min: 1, max: 2000, value: 500 });
    this.start = button(row, "Generate", () => this.run(), "main");
    this.kept = element("p", undefined, left, "muted");
    this.bars = element("div", undefined, left);
    this.text = element("div", "Press “Generate”.", right, "generated");
  }

  get settings() {
    return Object.fromEntries(this.inputs.map(([name, , input, off]) => [name, +input.value === off ? "" : input.value]));
  }

  get state() { return [...this.inputs.map(([, , input]) => input), this.seed, this.count].map(input => input.value); }
  restore(values) {
    [...this.inputs.map(([, , input]) => input), this.seed, this.count].forEach((input, i) => { input.value = values[i]; });
  }

  hide() { this.stop?.(); this.asker.begin(); }

  async show() {
    this.inputs.forEach(([, label, input, off]) => {
      input.caption.textContent = `${label}: ${+input.value === off ? "off" : input.value}`;
    });
    const { lab } = this;
    await lab.try(async () => {
      const answer = await this.asker.ask("next", { ...lab.model, prompt: lab.prompt, ...this.settings });
      if (!answer) return;
      this.kept.textContent = `After the prompt, ${answer.n_kept} of ${answer.vocab_size} tokens can be sampled.`;
      this.bars.replaceChildren(...answer.tokens.slice(0, 16).map(({ token, p, kept }) => {
        const bar = element("div", undefined, undefined, "bar twin");
        element("b", token, bar);
        element("i", "", bar).style.width = `${100 * p}%`;
        element("span", `${percent(p)} → ${kept ? percent(kept) : "–"}`, bar);
        element("i", "", bar).style.width = `${100 * kept}%`;
        return bar;
      }));
    });
  }

  run() {
    if (this.stop) { this.stop(); return; }
    const { lab } = this;
    this.text.replaceChildren(element("span", lab.prompt, undefined, "given"));
    this.start.textContent = "Stop";
    this.stop = generate(
      { ...lab.model, prompt: lab.prompt, ...this.settings, seed: this.seed.value, tokens: this.count.value },
      piece => this.text.append(piece),
      problem => { this.stop = undefined; this.start.textContent = "Generate"; lab.problem(problem); },
    );
  }
}
