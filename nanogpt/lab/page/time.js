import { element, svg } from "./dom.js";
import { Asker, Problem, get } from "./api.js";
import { button, promptField } from "./controls.js";
import { Inside } from "./inside.js";
import { drawLines } from "./lines.js";

const FRAME_MILLISECONDS = 250;
const FORMS = ["text", "predictions", "attention", "lens", "embedding"];

export class TimeMachine {
  static title = "Time machine";
  static hint = "Move the slider, or play the film, to see the same prompt with the weights of each step. First " +
    "the frequencies of single characters appear, then pairs, then words; look for the step at which a head " +
    "finds its pattern (lesson 10).";

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("time");
    this.frames = new Map();                           // what the model computes, by number of the snapshot
    this.samples = new Map();                          // a completion of the prompt
    promptField(parent, lab, () => this.load());
    const row = element("div", undefined, parent, "slider");
    this.play = button(row, "▶ Play", () => this.toggle(), "main");
    this.slider = element("input", undefined, row);
    Object.assign(this.slider, { type: "range", min: 0, step: 1 });
    this.slider.setAttribute("aria-label", "Snapshot");
    this.slider.oninput = () => this.showFrame(+this.slider.value);
    this.which = element("output", undefined, row, "big");
    this.note = element("p", undefined, parent, "muted");
    const columns = element("div", undefined, parent, "columns");
    this.chart = svg("svg", { class: "chart" }, element("div", undefined, columns));
    const box = element("div", undefined, columns);
    element("h2", "What it generates after the prompt", box);
    this.sample = element("div", undefined, box, "generated");
    this.inside = new Inside(element("div", undefined, parent, "film"), { parts: FORMS, hasLarge: false });
  }

  show() {
    const steps = this.lab.run.snapshots;
    this.steps = steps.length ? steps : ["best"];
    this.slider.max = this.steps.length - 1;
    this.play.disabled = this.steps.length < 2;
    this.note.textContent = steps.length ? "" : "This run has no snapshots, so only its best weights can be " +
      "shown. Runs of the lab keep 40; on the command line, use --train.history 40.";
    const chosen = this.steps.findIndex(step => String(step) === this.lab.step);
    this.slider.value = chosen < 0 ? this.steps.length - 1 : chosen;
    this.records = [];
    this.lab.watch(async () => {
      this.records = await get("metrics", { run: this.lab.run.name });
      this.drawCurve();
    });
    return this.load();
  }

  // The loss over the logarithm of the step, with a line at the step of the slider.
  drawCurve() {
    const { run } = this.lab, step = this.steps[+this.slider.value];
    const pick = key => this.records.filter(record => record[key] !== undefined && record.step)
      .map(record => [record.step, record[key]]);
    drawLines(this.chart, {
      x: "step (logarithmic)", y: "loss (nats per token)", logarithmic: true,
      marker: step === "best" ? run.step : Math.max(1, step), rules: [{ name: "bigram", y: run.bigram_loss }],
      series: [
        { name: "training", colour: "ink", dashes: "5 4", points: pick("train_loss") },
        { name: "validation", colour: "surprise", points: pick("val_loss") },
      ],
      onPick: x => this.showFrame(this.steps.reduce((best, other, i) =>
        Math.abs(Math.log((other || .5) / x)) < Math.abs(Math.log((this.steps[best] || .5) / x)) ? i : best, 0)),
    });
  }

  hide() { clearInterval(this.timer); this.asker.begin(); }

  // Ask for all frames, and then for their samples: always the missing one that is nearest to the slider.
  // So the reader can move the slider while answers arrive.
  async load() {
    this.frames.clear();
    this.samples.clear();
    const turn = this.asker.begin();
    for (const [answers, ask] of [[this.frames, "inspect"], [this.samples, "complete"]]) {
      while (answers.size < this.steps.length) {
        const here = +this.slider.value, missing = [...this.steps.keys()].filter(i => !answers.has(i));
        const index = missing.reduce((a, b) => Math.abs(b - here) < Math.abs(a - here) ? b : a);
        const question = { run: this.lab.run.name, step: this.steps[index], prompt: this.lab.prompt, tokens: 120 };
        const answer = await this.asker.ask(ask, question, turn).catch(error => {
          if (!(error instanceof Problem)) throw error;
          return { problem: error.message };           // one damaged snapshot does not hide the others
        });
        if (turn !== this.asker.turn) return;
        answers.set(index, answer ?? {});
        if (index === +this.slider.value) this.showFrame(index);
      }
    }
  }

  showFrame(index) {
    const step = this.steps[index], frame = this.frames.get(index);
    this.slider.value = index;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.which.textContent = step === "best" ? "best" : `step ${step.toLocaleString("en")}`;
    this.drawCurve();
    this.sample.textContent = this.samples.get(index)?.sample ?? "…";
    if (!frame) return;                                // shown as soon as it arrives
    this.lab.problem(frame.problem);
    if (!frame.problem) this.inside.show(frame);
  }

  toggle() {
    const isPlaying = this.timer !== undefined;
    clearInterval(this.timer);
    this.timer = undefined;
    this.play.textContent = isPlaying ? "▶ Play" : "❚❚ Stop";
    if (isPlaying) return;
    if (+this.slider.value === this.steps.length - 1) this.slider.value = -1;
    this.timer = setInterval(() => {
      const next = +this.slider.value + 1;
      if (next >= this.steps.length) this.toggle();
      else if (this.frames.has(next)) this.showFrame(next);
    }, FRAME_MILLISECONDS);
  }
}
