import { element, svg } from "./dom.js";
import { get, generate, listen, post } from "./api.js";
import { button, choose, field } from "./controls.js";
import { baselineRules, drawLines } from "./lines.js";

const NAMES = { n_layer: "Layers", n_head: "Heads", n_embd: "Channels", block_size: "Context" };

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.max(1, Math.round(seconds))} s`;
}

export class Train {
  static title = "Train";
  static hint = "Start a run and watch the loss fall below the lines of the bigram and of the n-grams (a small model stays above the n-grams). If the validation " +
    "loss rises while the training loss falls, the model overfits.";
  static lessons = [2, 8, 10];

  constructor(parent, lab) {
    this.lab = lab;
    this.records = [];
    const columns = element("div", undefined, parent, "columns");
    const left = element("div", undefined, columns), right = element("div", undefined, columns);
    this.buildForm(right);
    this.title = element("h2", undefined, left);
    this.numbers = element("div", undefined, left, "muted");
    this.chart = svg("svg", { class: "chart" }, left);
    const row = element("div", undefined, left, "row");
    this.pause = button(row, "Pause", () => this.act("pause"));
    this.resume = button(row, "Resume", () => this.act("resume"));
    this.list = element("div", undefined, right);
    this.sampleTitle = element("h2", undefined, left);
    this.sample = element("div", undefined, left, "generated");
  }

  async buildForm(parent) {
    element("h2", "A new run", parent);
    const form = element("div", undefined, parent);
    const choices = await this.lab.try(() => get("setup"));
    if (!choices) return;
    const row = element("div", undefined, form, "row");
    this.preset = choose(row, "Preset", choices.presets.map(preset => [preset.name, `${preset.name}: ${preset.purpose}`]),
      () => this.fillSizes(choices));
    this.preset.value = "tiny";
    this.data = choose(row, "Text", [...choices.corpora, ["paste", "a text of my own"]], () => {
      this.own.hidden = this.data.value !== "paste";
    });
    this.own = element("div", undefined, form);
    this.own.hidden = true;
    this.pasted = element("textarea", undefined, this.own);
    this.pasted.placeholder = "Paste a text here, or choose a file. Use at least 100,000 characters.";
    this.pasted.setAttribute("aria-label", "Text of my own");
    const file = field(element("div", undefined, this.own, "row"), "File", { type: "file", accept: "text/*,.txt" });
    file.onchange = async () => { this.pasted.value = await file.files[0].text(); };
    this.sizes = element("div", undefined, form, "row");
    this.expected = element("p", undefined, form, "muted");
    this.startButton = button(form, "Start", () => this.start(), "main");
    this.fillSizes(choices);
  }

  fillSizes(choices) {
    const preset = choices.presets.find(({ name }) => name === this.preset.value);
    this.sizes.replaceChildren();
    this.inputs = Object.entries({ ...preset.sizes, steps: preset.steps }).map(([name, value]) => [name,
      field(this.sizes, NAMES[name] ?? "Steps", { type: "number", min: 1, max: choices.limits[name] ?? 1e6, value },
        () => this.explain())]);
    this.explain();
  }

  get plan() { return Object.fromEntries(this.inputs.map(([name, input]) => [name, input.value])); }

  explain() {
    const plan = this.explained = this.plan;
    return this.lab.try(async () => {
      const answer = await get("explain", { preset: this.preset.value, ...plan }).catch(error => {
        if (plan !== this.explained) return;           // the form has changed since
        this.expected.textContent = "";
        throw error;
      });
      if (answer && plan === this.explained) this.expected.textContent = `${answer.parameters.toLocaleString("en")} ` +
        `parameters; about ${duration(answer.seconds)} for all steps, if this computer does nothing else.`;
    });
  }

  start() {
    return this.lab.try(async () => {
      const data = this.data.value === "paste" ? (await post("text", this.pasted.value)).data : this.data.value;
      const { steps, ...sizes } = this.plan;
      this.wanted = (await post("train", { preset: this.preset.value, data, steps, sizes })).run;
    });
  }

  act(action) { return this.lab.try(() => post(action, { run: this.lab.run.name })); }

  show() {
    this.hide();
    this.records = [];
    this.sample.textContent = this.sampleTitle.textContent = this.numbers.textContent = "";
    this.baselines = undefined;
    this.sampledAt = undefined;
    const run = this.lab.run?.name;
    this.close = listen("events", { run }, {
      runs: runs => this.showRuns(runs),
      records: ({ start, records }) => {               // after a lost connection, `start` is 0 again
        this.records = [...this.records.slice(0, start), ...records];
        this.drawSoon();
      },
    });
    this.draw();
    this.countNgrams();
  }

  // Ask for the losses of the n-grams. A run that has just started has no weights yet, so ask until there is an answer.
  async countNgrams() {
    const { run } = this.lab;
    if (!run || this.baselines || this.isCounting || run.val_loss === null) return;
    this.isCounting = true;
    const answer = await get("baselines", { run: run.name }).catch(() => undefined);
    this.isCounting = false;
    if (run.name !== this.lab.run?.name) return;
    this.baselines = answer;
    this.draw();
  }

  hide() {
    this.close?.();
    this.close = undefined;
    cancelAnimationFrame(this.frame);
    this.stopSample?.();
  }

  showRuns(runs) {
    this.lab.setRuns(runs);
    this.list.replaceChildren();
    element("h2", "Runs", this.list);
    for (const run of runs) {
      const line = element("p", undefined, this.list);
      button(line, run.name, () => this.lab.chooseRun(run.name)).disabled = Boolean(run.error || run.is_starting);
      line.append(run.error ? ` ${run.error}` : run.is_starting ? " is starting …"
        : ` ${run.is_training ? "trains" : run.step < run.steps ? "is paused" : "is done"}: step ` +
          `${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}`);
    }
    const started = runs.find(run => run.name === this.wanted && !run.is_starting);
    if (started) {
      this.wanted = undefined;
      if (started.error) this.lab.problem(`${started.name}: ${started.error}`);
      else this.lab.chooseRun(started.name);
    }
    this.drawSoon();
    this.countNgrams();
  }

  // Draw once, even if several events arrive together: the page and the training share the processor.
  drawSoon() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const { run } = this.lab;
    this.title.textContent = run ? run.name : "No run yet: start one";
    const isPaused = Boolean(run) && !run.is_training && run.step < run.steps;
    this.pause.hidden = !run?.is_training;
    this.resume.hidden = !isPaused;
    if (!run) return;
    const pick = key => this.records.filter(record => record[key] !== undefined).map(record => [record.step, record[key]]);
    drawLines(this.chart, { x: "step", y: "loss (nats per token)", until: run.steps,
      rules: baselineRules(run, this.baselines), series: [
      { name: "training", colour: "ink", dashes: "5 4", points: pick("train_loss") },
      { name: "validation", colour: "surprise", points: pick("val_loss") },
    ] });
    const last = this.records.at(-1), before = this.records.at(-2);
    if (!last) return;
    const rate = before && last.seconds > before.seconds ? (last.tokens - before.tokens) / (last.seconds - before.seconds) : 0;
    const facts = [`step ${last.step.toLocaleString("en")}`];
    const left = before && (last.seconds - before.seconds) / (last.step - before.step) * (run.steps - last.step);
    if (run.is_training && rate)
      facts.push(`${Math.round(rate).toLocaleString("en")} tokens/s`, `${duration(left)} left`);
    facts.push(`learning rate ${+last.lr.toPrecision(3)}`);
    if (last.gradient_norm !== undefined) facts.push(`gradient norm ${last.gradient_norm.toFixed(2)}`);
    this.numbers.textContent = facts.join(" · ");
    this.renewSample();
  }

  // Generate a short text with the newest snapshot. The first snapshots come faster than texts, so some are skipped.
  renewSample() {
    const { run } = this.lab, newest = run.snapshots.at(-1) ?? (run.val_loss === null ? undefined : "best");
    if (newest === undefined || newest === this.sampledAt || this.stopSample) return;
    this.sampledAt = newest;
    this.sampleTitle.textContent = newest === "best" ? "A sample of the best weights"
      : `A sample after step ${newest.toLocaleString("en")}`;
    this.sample.textContent = "";
    this.stopSample = generate({ run: run.name, step: newest, tokens: 80 }, piece => this.sample.append(piece), () => {
      this.stopSample = undefined;
      if (this.close) this.renewSample();
    });
  }
}
