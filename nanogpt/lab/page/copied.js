import { element, makeButton, svg } from "./dom.js";
import { Asker } from "./api.js";
import { button, field } from "./controls.js";
import { drawLines } from "./lines.js";

const LONG = 12;                                       // characters; shorter matches are not marked

export class Copied {
  static title = "Copied or invented?";
  static hint = "The training text contains the underlined parts; click one to see where. Held-out text contains such " +
    "matches, too. Only longer or more frequent matches are a sign of copying.";
  static lessons = [11];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("copied");
    const row = element("div", undefined, parent, "row");
    this.seed = field(row, "Seed", { type: "number", min: 0, value: 1337 });
    button(row, "Generate", () => this.show(), "main");
    const columns = element("div", undefined, parent, "columns");
    const left = element("div", undefined, columns), right = element("div", undefined, columns);
    element("h2", "Generated text", left);
    this.text = element("div", undefined, left, "generated");
    element("h2", "The same words in the training text", right);
    this.source = element("div", undefined, right, "generated");
    this.chart = svg("svg", { class: "chart" }, right);
    this.note = element("p", undefined, right, "muted");
  }

  get state() { return this.seed.value; }
  restore(seed) { this.seed.value = seed; }

  hide() { this.asker.begin(); }

  async show() {
    const { lab } = this;
    this.source.textContent = `Click an underlined part. Matches of at least ${LONG} characters are underlined.`;
    await lab.try(async () => {
      const answer = await this.asker.ask("copied", { ...lab.model, seed: this.seed.value });
      if (answer) this.showAnswer(answer);
    });
  }

  showAnswer({ text, matches, lengths, held_out_lengths: heldOut }) {
    const characters = [...text];                      // the server counts code points, too
    this.text.replaceChildren();
    let end = 0;
    for (const match of matches.filter(({ length }) => length >= LONG)) {
      if (match.start < end) continue;                 // overlaps the previous match
      this.text.append(characters.slice(end, match.start).join(""));
      end = match.start + match.length;
      const part = element("span", characters.slice(match.start, end).join(""), this.text, "mark");
      part.setAttribute("role", "button");
      makeButton(part, () => this.showSource(match));
    }
    this.text.append(characters.slice(end).join(""));
    const longest = Math.max(...lengths, ...heldOut);
    const share = (values, name, colour, dashes) => {
      const points = [];
      for (let n = 1; n <= longest + 1; n++) points.push([n, 100 * values.filter(length => length >= n).length / values.length]);
      return { name, colour, dashes, points };
    };
    drawLines(this.chart, { x: "length of the longest match (characters)",
      y: "positions with at least this length (%)", lowest: 0, series: [share(heldOut, "held-out text", "ink", "5 4"), share(lengths, "generated", "surprise")] });
    const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
    this.note.textContent = `Mean length: ${mean(lengths).toFixed(1)} characters in generated text, ` +
      `${mean(heldOut).toFixed(1)} in held-out text. Longest: ${Math.max(...lengths)} and ${Math.max(...heldOut)}.`;
  }

  showSource({ excerpt: [before, match, after] }) {
    this.source.replaceChildren("…" + before);
    element("strong", match, this.source);
    this.source.append(after + "…");
  }
}
