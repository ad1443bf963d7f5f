import { element, makeButton, percent, quoted, showBars } from "./dom.js";
import { Asker } from "./api.js";
import { button, signed, tint, tintLegend } from "./controls.js";

export class Counting {
  static title = "Against counting";
  static hint = "Orange: the model gives the token a higher probability than the n-grams do. Grey: the n-grams give it a " +
    "higher one. Look for the contexts in which each of them wins.";
  static lessons = [3];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("counting");
    this.start = 0;
    const row = element("div", undefined, parent, "row");
    this.earlier = button(row, "← Earlier", () => this.move(-1));
    button(row, "Later →", () => this.move(1));
    this.place = element("span", undefined, row, "muted");
    this.note = element("p", undefined, parent, "muted");
    tintLegend(parent, "counting better", "model better");
    this.text = element("div", undefined, parent, "text");
    this.text.tabIndex = 0;
    this.text.setAttribute("aria-label", "Text. The arrow keys move the selected position.");
    this.text.onkeydown = event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !this.last) return;
      event.preventDefault();
      this.position = Math.max(0, Math.min(this.last, (this.position ?? this.last) + step));
      this.show();
    };
    this.next = element("div", undefined, parent, "columns");
    const columns = element("div", undefined, parent, "columns");
    this.lists = ["Where the model wins most (nats more than counting)", "Where counting wins most"].map(title => {
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
    this.last = answer.tokens.length - 2;              // the last position that can be selected
    this.note.textContent = `Mean over the first ${answer.count.toLocaleString("en")} tokens of the validation split: model ` +
      `${answer.losses.model.toFixed(3)}, ${n}-grams ${answer.losses.ngram.toFixed(3)} nats per token. ` +
      `The ${answer.losses.model < answer.losses.ngram ? "model is" : `${n}-grams are`} better. ` +
      "Click a token to see what was predicted at its place.";
    this.place.textContent = `tokens ${(answer.start + 1).toLocaleString("en")} to ` +
      `${(answer.start + answer.tokens.length).toLocaleString("en")} of the split`;
    this.earlier.disabled = answer.start === 0;
    this.text.replaceChildren();
    answer.tokens.forEach((token, t) => {
      const span = element("span", token, this.text);
      if (t) {
        tint(span, ngram[t - 1] - model[t - 1]);       // positive if the model is better
        span.title = `model ${percent(Math.exp(-model[t - 1]))}, ${n}-grams ${percent(Math.exp(-ngram[t - 1]))}`;
        span.onclick = () => { this.position = t - 1; this.show(); };
        span.classList.toggle("selected", t - 1 === (this.position ?? answer.tokens.length - 2));
      }
      if (token.includes("↵")) element("br", undefined, this.text);
    });
    const place = this.position ?? this.last, actual = answer.tokens[place + 1];
    const before = answer.tokens.slice(Math.max(0, place - 9), place + 1).join("");
    this.next.replaceChildren(...Object.entries(answer.next).map(([name, rows]) => {
      const box = element("div");
      element("h3", `${name}, after ${quoted(before)}`, box);
      showBars(element("div", undefined, box), rows.map(({ token, p }) => [token, p, token === actual]));
      return box;
    }));
    [answer.wins, answer.defeats].forEach((rows, i) => {
      this.lists[i].replaceChildren();
      for (const { before, token, nats, start } of rows) {
        const row = element("tr", undefined, this.lists[i], "link");
        element("th", before, row);
        element("td", token, row).className = "correct";
        element("td", `${signed(nats, 1)} nats`, row);
        makeButton(row, () => { this.start = Math.max(0, start - 20); this.position = start - this.start; this.show(); });
      }
    });
  }
}
