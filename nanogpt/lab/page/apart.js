import { element } from "./dom.js";
import { Asker, get } from "./api.js";
import { button, promptField, signed } from "./controls.js";
import { Inside } from "./inside.js";

export class TakeApart {
  static title = "Take it apart";
  static hint = "Click a part to switch it off, and see how much the loss rises. Look for the few heads that matter, " +
    "and for the layer that matters most.";
  static lessons = [5, 6, 7, 13];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("apart");
    promptField(parent, lab, () => this.measure());
    const columns = element("div", undefined, parent, "columns");
    const left = element("div", undefined, columns), right = element("div", undefined, columns);
    this.parts = element("div", undefined, element("div", undefined, left, "scroll"), "parts");
    const row = element("div", undefined, left, "row");
    button(row, "Switch all on", () => { this.off.clear(); this.measure(); });
    this.rankButton = button(row, "Rank all parts", () => this.rank());
    this.result = element("div", undefined, right, "big");
    this.note = element("p", undefined, right, "muted");
    this.sample = element("div", undefined, right, "generated");
    this.ranking = element("table", undefined, right, "ranking");
    this.inside = new Inside(element("div", undefined, parent), { parts: ["text", "predictions", "attention"] });
    this.off = new Set();
  }

  async show() {
    this.ranking.replaceChildren();
    this.whole = undefined;
    await this.measure();
  }

  get state() { return [...this.off]; }
  restore(off) { this.off = new Set(off); }

  hide() { this.asker.begin(); this.isRanking = false; }

  async measure() {
    const { lab } = this;
    await lab.try(async () => {
      const question = { ...lab.model, prompt: lab.prompt };
      const turn = this.asker.begin();
      this.whole ??= (await get("ablate", { ...lab.model, only_loss: 1 })).loss;
      const answer = await this.asker.ask("ablate", { ...question, off: [...this.off].sort().join(",") }, turn);
      if (!answer) return;
      this.showParts(answer.parts);
      const change = answer.loss - this.whole;
      this.result.textContent = `loss ${answer.loss.toFixed(3)} nats per token ` +
        (this.off.size ? `(${signed(change, 3)})` : "with all parts");
      this.note.textContent = `Measured on the first ${answer.tokens.toLocaleString("en")} of ` +
        `${answer.all_tokens.toLocaleString("en")} tokens of the validation split. Below: a text that the ` +
        "remaining parts generate.";
      this.sample.textContent = answer.sample;
      this.inside.show(answer.inspection);
    });
  }

  showParts(parts) {
    if (this.names?.join() === parts.join()) {         // keep the buttons, and with them the focus
      this.buttons.forEach((node, name) => node.setAttribute("aria-pressed", !this.off.has(name)));
      return;
    }
    this.names = parts;
    this.buttons = new Map();
    this.parts.replaceChildren();
    this.parts.style.setProperty("--heads", this.lab.run.n_head);
    if (!parts.length) element("p", "A bigram model has no parts to switch off.", this.parts);
    for (let layer = 1; layer <= this.lab.run.n_layer; layer++) {
      element("span", `layer ${layer}`, this.parts);
      const names = parts.filter(name => new RegExp(`^(head ${layer}\\.|(feed-forward|block) ${layer}$)`).test(name));
      names.forEach(name => this.addPart(name, this.parts));
    }
    const row = element("div", undefined, this.parts, "row");
    row.style.gridColumn = "1 / -1";
    parts.filter(name => !/\d/.test(name)).forEach(name => this.addPart(name, row));
  }

  addPart(name, parent) {
    const node = button(parent, name, () => {
      if (!this.off.delete(name)) this.off.add(name);
      node.setAttribute("aria-pressed", !this.off.has(name));
      this.measure();
    });
    node.setAttribute("aria-pressed", !this.off.has(name));
    this.buttons.set(name, node);
  }

  // Measure the loss without each part in turn, and list the parts; the part with the largest increase is first.
  async rank() {
    const { lab } = this, losses = [], run = lab.model;
    this.isRanking = true;
    this.rankButton.disabled = true;
    for (const name of this.names) {
      const answer = await lab.try(() => get("ablate", { ...run, off: name, only_loss: 1 }));
      if (!answer || !this.isRanking) break;
      losses.push([name, answer.loss - this.whole]);
      losses.sort((a, b) => b[1] - a[1]);
      this.ranking.replaceChildren();
      element("caption", `Change of the loss without one part (${losses.length} of ${this.names.length}), in nats per ` +
        "token", this.ranking);
      for (const [part, change] of losses) {
        const row = element("tr", undefined, this.ranking);
        element("th", `without ${part}`, row);
        element("td", signed(change, 4), row);
        const bar = element("i", "", element("td", undefined, row));
        bar.style.width = `${Math.max(0, 8 * change / losses[0][1])}rem`;
      }
    }
    this.rankButton.disabled = this.isRanking = false;
  }
}
