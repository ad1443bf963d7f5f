import { element, svg } from "./dom.js";
import { Asker, get } from "./api.js";
import { choose, promptField, setChoices, tint, tintLegend } from "./controls.js";
import { drawLines } from "./lines.js";

export class Compare {
  static title = "Compare";
  static hint = "Choose a second run or another step. Orange tokens are more probable for the second model, grey ones for " +
    "the first. Look for what the better model has learned: names, spelling, or grammar.";
  static lessons = [9, 12];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("compare");
    const row = element("div", undefined, parent, "row");
    this.run = choose(row, "Second run", [], () => { this.fillSteps(); this.show(); });
    this.step = choose(row, "Its step", [], () => this.show());
    this.note = element("div", undefined, parent, "muted");
    this.text = element("div", undefined, parent, "text");
    element("h2", "Samples", parent);
    promptField(parent, lab, () => this.show());
    const columns = element("div", undefined, parent, "columns");
    this.samples = [0, 1].map(() => {
      const box = element("div", undefined, columns);
      return [element("h2", undefined, box), element("div", undefined, box, "generated")];
    });
    element("h2", "Validation loss", parent);
    this.chart = svg("svg", { class: "chart" }, parent);
  }

  get state() { return { run: this.run.value, step: this.step.value }; }
  restore(state) { this.wanted = state; }

  hide() { this.asker.begin(); }

  fillSteps() {
    const other = this.lab.runs.find(run => run.name === this.run.value);
    setChoices(this.step, [["best", "best"], ...(other?.snapshots ?? []).map(step => [step, step.toLocaleString("en")])]);
  }

  async show() {
    const { lab } = this, usable = lab.runs.filter(run => !run.error && !run.is_starting);
    const isNew = !this.run.value;
    setChoices(this.run, usable.map(run => run.name));
    if (isNew) this.run.value = (usable.find(run => run.name !== lab.run.name) ?? lab.run).name;
    this.fillSteps();
    if (isNew && this.run.value === lab.run.name)      // at first, compare with an early step
      this.step.value = lab.run.snapshots[Math.floor(lab.run.snapshots.length / 2)] ?? "best";
    if (this.wanted) {
      this.run.value = this.wanted.run;
      this.fillSteps();
      this.step.value = this.wanted.step;
      this.wanted = undefined;
    }
    this.drawCurves();
    await lab.try(async () => {
      const question = { ...lab.model, run2: this.run.value, step2: this.step.value, prompt: lab.prompt };
      const answer = await this.asker.ask("compare", question);
      if (answer) this.showAnswer(answer);
    });
  }

  showAnswer({ tokens, losses: [one, two], means, count, samples }) {
    const names = [[this.lab.run.name, this.lab.step], [this.run.value, this.step.value]]
      .map(([run, step]) => `${run}, ${step === "best" ? "best" : `step ${(+step).toLocaleString("en")}`}`);
    this.note.textContent = `Mean loss on the first ${count.toLocaleString("en")} tokens of the validation split: ` +
      `${names[0]}: ${means[0].toFixed(3)}; ${names[1]}: ${means[1].toFixed(3)} nats per token.` +
      (names[0] === names[1] ? " Both are the same model: choose another run or step." : "");
    tintLegend(this.note, `${names[0]} better`, `${names[1]} better`);
    this.text.replaceChildren();
    tokens.forEach((token, t) => {
      const span = element("span", token, this.text);
      if (t) {
        tint(span, one[t - 1] - two[t - 1]);
        span.title = `${one[t - 1].toFixed(2)} and ${two[t - 1].toFixed(2)} nats`;
      }
      if (token.includes("↵")) element("br", undefined, this.text);
    });
    this.samples.forEach(([title, text], i) => {
      title.textContent = `${names[i]}: after the prompt, with the same seed`;
      text.textContent = samples[i];
    });
  }

  async drawCurves() {
    const names = [...new Set([this.lab.run.name, this.run.value])];     // only one curve if both are the same run
    const curves = await this.lab.watch(() => Promise.all(names.map(run => get("metrics", { run }))));
    if (!curves) return;
    drawLines(this.chart, { x: "step", y: "validation loss (nats per token)", series: curves.map((records, i) => ({
      name: names[i], colour: ["ink", "surprise"][i], dashes: i ? "" : "5 4",
      points: records.filter(record => record.val_loss !== undefined).map(record => [record.step, record.val_loss]),
    })) });
  }
}
