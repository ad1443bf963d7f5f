import { element, svg } from "./dom.js";
import { Asker, Problem, get } from "./api.js";
import { button, promptField } from "./controls.js";
import { Inside } from "./inside.js";
import { baselineRules, drawLines } from "./lines.js";
import { drawSteps, findStep } from "./steps.js";

const FRAME_MILLISECONDS = 250;
const FORMS = ["text", "predictions", "attention", "lens", "embedding"];

export class TimeMachine {
  static title = "Time machine";
  static hint = "Move the slider, or play the film, to see the same prompt with the weights of each step. The " +
    "model first learns the frequencies of single characters, then pairs, then words. Look for the step at which a " +
    "head finds its pattern, such as attention to the previous character.";
  static lessons = [10];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("time");
    this.frames = new Map();                           // what the model computes, by the index of the snapshot
    this.samples = new Map();                          // completions of the prompt, by the same index
    promptField(parent, lab, () => {
      this.frames.clear();
      this.samples.clear();
      this.loading = this.load();
    });
    const row = element("div", undefined, parent, "slider");
    this.play = button(row, "▶ Play", () => this.toggle(), "main");
    this.slider = element("input", undefined, row);
    Object.assign(this.slider, { type: "range", min: 0, step: 1 });
    this.slider.setAttribute("aria-label", "Snapshot");
    this.slider.oninput = () => this.chooseFrame(+this.slider.value);
    this.which = element("output", undefined, row, "big");
    this.note = element("p", undefined, parent, "muted");
    const columns = element("div", undefined, parent, "columns wide");
    const addBox = title => {
      const box = element("div", undefined, columns);
      element("h2", title, box);
      return box;
    };
    this.sample = element("div", undefined, addBox("What it generates after the prompt"), "generated");
    this.chart = svg("svg", { class: "chart" }, addBox("Loss"));
    const map = addBox("Surprise at each token, all steps");
    this.all = element("canvas", undefined, map, "steps");
    element("div", undefined, map, "legend").replaceChildren("0", element("i"), "6 nats or more; a row for each snapshot, " +
      "about logarithmic in the step. Click to choose a step and a position.");
    this.all.setAttribute("role", "img");
    this.all.setAttribute("aria-label", "Surprise at each token, a row for each step");
    this.all.onclick = event => {
      const [step, position] = findStep(this.all, event, this.steps.length, this.inside.T);
      this.inside.selected.position = position;
      this.chooseFrame(step);
    };
    this.heads = svg("svg", { class: "chart" }, addBox("Attention to the previous token, each head"));
    this.film = element("div", undefined, parent, "film");
    this.inside = new Inside(this.film, { parts: FORMS, isShort: true });
    this.inside.onUpdate = () => this.drawAll();
  }

  show() {
    const steps = this.lab.run.snapshots;
    this.steps = steps.length ? steps : ["best"];
    this.slider.max = this.steps.length - 1;
    this.play.disabled = this.steps.length < 2;
    this.note.textContent = steps.length ? "" : "This run has no snapshots, so only its best weights can be " +
      "shown. The lab saves snapshots of each run that it starts; on the command line, use --train.history 40.";
    const chosen = this.steps.findIndex(step => String(step) === this.lab.step);
    this.slider.value = this.wanted ?? (chosen < 0 ? this.steps.length - 1 : chosen);
    this.wanted = undefined;
    this.records = [];
    this.lab.watch(async () => {
      this.records = await get("metrics", { run: this.lab.run.name });
      this.drawCurve();
    });
    this.frames.clear();
    this.samples.clear();
    this.loading = this.load();
  }

  // Add the snapshots that the run has saved since.
  renewRun() {
    const { snapshots } = this.lab.run, { value, max } = this.slider;
    if (!this.steps || snapshots.length === this.steps.length || this.steps[0] === "best" && !snapshots.length) return;
    if (this.steps[0] === "best") {
      this.show();
      return;
    }
    this.steps = snapshots;
    this.slider.max = snapshots.length - 1;
    if (value === max) this.slider.value = this.slider.max;          // stay at the newest snapshot
    this.loading = this.load();
  }

  // The loss over the logarithm of the step, with a line at the step of the slider.
  drawCurve() {
    const { run } = this.lab, step = this.steps[+this.slider.value];
    const pick = key => this.records.filter(record => record[key] !== undefined && record.step)
      .map(record => [record.step, record[key]]);
    drawLines(this.chart, {
      x: "step (logarithmic)", y: "loss (nats per token)", logarithmic: true,
      marker: step === "best" ? run.step : Math.max(1, step), rules: baselineRules(run, this.baselines),
      series: [
        { name: "training", colour: "ink", dashes: "5 4", points: pick("train_loss") },
        { name: "validation", colour: "surprise", points: pick("val_loss") },
      ],
      onPick: x => this.chooseFrame(this.findNearest(x)),
    });
  }

  get state() { return { index: +this.slider.value, selected: this.inside.selected }; }
  restore({ index, selected }) { this.wanted = index; this.inside.selected = selected; }

  // Draw the pictures that show all steps at once.
  drawAll() {
    const index = +this.slider.value, frames = [...this.frames].filter(([, frame]) => frame.tokens);
    if (!this.inside.shown || !frames.length) return;
    drawSteps(this.all, this.steps, this.frames, index, this.inside.shown.position);
    const [, { attention }] = frames[0], T = this.inside.T;
    this.heads.parentNode.hidden = !attention.length || T < 2;
    if (this.heads.parentNode.hidden) return;
    frames.sort((a, b) => a[0] - b[0]);
    const lines = attention.flatMap((layer, l) => layer.map((_, h) => {
      const points = frames.map(([i, frame]) => [Math.max(1, this.steps[i]) || 1,
        frame.attention[l][h].reduce((sum, row, t) => sum + (t ? row[t - 1] : 0), 0) / (T - 1)]);
      return { name: `head ${l + 1}.${h + 1}`, points };
    }));
    const last = line => line.points.at(-1)[1], limit = Math.max(.2, lines.map(last).sort((a, b) => b - a)[2] ?? 0);
    drawLines(this.heads, { x: "step (logarithmic)", y: "mean attention weight", logarithmic: true, lowest: 0,
      marker: Math.max(1, this.steps[index]) || 1, onPick: x => this.chooseFrame(this.findNearest(x)),
      series: lines.map(line => last(line) >= limit ? { ...line, colour: "surprise" }
        : { ...line, name: "", colour: "ink", opacity: .35 }) });
  }

  // The index of the snapshot whose step is nearest to x, on a logarithmic scale.
  findNearest(x) {
    const distances = this.steps.map(step => Math.abs(Math.log((step || .5) / x)));
    return distances.indexOf(Math.min(...distances));
  }

  hide() { clearInterval(this.timer); this.asker.begin(); }

  // Ask for all frames, and then for all samples. The next one is always the missing one nearest to the slider, so
  // the user can move the slider while answers arrive.
  async load() {
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
        else if (answers === this.frames) this.drawAll();
      }
    }
    if (this.baselines) return;
    this.baselines = await this.lab.watch(() => get("baselines", { run: this.lab.run.name }));
    if (turn === this.asker.turn) this.drawCurve();
  }

  // Show a frame; the other views show the same step afterwards.
  chooseFrame(index) {
    this.lab.noteStep(this.steps[index]);
    this.showFrame(index);
  }

  showFrame(index) {
    const step = this.steps[index], frame = this.frames.get(index);
    this.slider.value = index;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.which.textContent = step === "best" ? "best" : `step ${step.toLocaleString("en")}`;
    this.drawCurve();
    this.film.hidden = Boolean(frame?.problem);
    this.sample.textContent = this.samples.get(index)?.sample ?? (frame?.problem ? "" : "…");
    if (!frame) return;                                // shown as soon as it arrives
    this.lab.problem(frame.problem);
    if (frame.problem) return;
    this.inside.show(frame);
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
      else if (this.frames.has(next)) this.chooseFrame(next);
    }, FRAME_MILLISECONDS);
  }
}
