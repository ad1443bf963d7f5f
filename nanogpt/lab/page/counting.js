import { element, percent, showBars } from "./dom.js";
import { Asker } from "./api.js";
import { button } from "./controls.js";

export class Counting {
  static title = "Against counting";
  static hint = "Orange: the model gives the token more probability. Grey: the counted n-grams do. Look for the contexts " +
    "in which counting wins, and for those in which the model wins.";
  static lessons = [3];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("counting");
    this.start = 0;
    const row = element("div", undefined, parent, "row");
    button(row, "← Earlier", () => this.move(-1));
    button(row, "Later →", () => this.move(1));
    this.note = element("span", undefined, row, "muted");
    this.text = element("div", undefined, parent, "text");
    this.next = element("div", undefined, parent, "columns");
    const columns = element("div", undefined, parent, "columns");
    this.lists = ["The model wins most here", "Counting wins most here"].map(title => {
      const box = element("div", undefined, columns);
      element("h2", title, box);
      return element("table", undefined, element("div", undefined, box, "scroll"));
    });
  }

  get state() { return { start: this.start, position: this.position }; }
  restore(state) { Object.assign(this, state); }

  hide() { this.asker.begin(); }
  move(pages) { this.start = Math.max(0, this.start + pages * this.lab.run.block_size); this.position = undefined; this.show(); }

  async show() {
    const { lab } = this;
    await lab.try(async () => {
      const answer = await this.asker.ask("counting", { ...lab.model, start: this.start, position: this.position });
      if (answer) this.showAnswer(answer);
    });
  }

  showAnswer(answer) {
    const { model, ngram, n } = answer;
    this.start = answer.start;
    this.note.textContent = `Mean over ${answer.count.toLocaleString("en")} tokens of the validation split: model ` +
      `${answer.losses.model.toFixed(3)}, ${n}-grams ${answer.losses.ngram.toFixed(3)} nats per token. Click a token.`;
    this.text.replaceChildren();
    answer.tokens.forEach((token, t) => {
      const span = element("span", token, this.text);
      if (t) {
        const gain = ngram[t - 1] - model[t - 1];      // in nats; positive if the model is better
        const strength = Math.min(1, Math.abs(gain) / 3);
        span.style.background = `rgb(var(--${gain > 0 ? "surprise" : "ink"}) / ${gain > 0 ? strength : strength / 2})`;
        span.title = `model ${percent(Math.exp(-model[t - 1]))}, ${n}-grams ${percent(Math.exp(-ngram[t - 1]))}`;
        span.onclick = () => { this.position = t - 1; this.show(); };
        span.classList.toggle("selected", t - 1 === (this.position ?? answer.tokens.length - 2));
      }
      if (token.includes("↵")) element("br", undefined, this.text);
    });
    const actual = answer.tokens[(this.position ?? answer.tokens.length - 2) + 1];
    this.next.replaceChildren(...Object.entries(answer.next).map(([name, rows]) => {
      const box = element("div");
      element("h3", `${name}: next token`, box);
      showBars(element("div", undefined, box), rows.map(({ token, p }) => [token, p, token === actual]));
      return box;
    }));
    [answer.wins, answer.defeats].forEach((rows, i) => {
      this.lists[i].replaceChildren();
      for (const { before, token, nats, start } of rows) {
        const row = element("tr", undefined, this.lists[i]);
        element("th", before, row);
        element("td", token, row).className = "correct";
        element("td", `${nats > 0 ? "+" : ""}${nats.toFixed(1)} nats`, row);
        row.onclick = () => { this.start = Math.max(0, start - 20); this.position = start - this.start; this.show(); };
      }
    });
  }
}
