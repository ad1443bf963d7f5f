// The frame of the page: the list of runs, the views, and what they share (run, step, prompt).

import { element } from "./dom.js";
import { Problem, allAnswers, forget, get, saved } from "./api.js";
import { button, setChoices } from "./controls.js";
import { savePage } from "./save.js";
import { Train } from "./train.js";
import { TimeMachine } from "./time.js";
import { Look } from "./look.js";
import { TakeApart } from "./apart.js";
import { Counting } from "./counting.js";
import { Copied } from "./copied.js";
import { Compare } from "./compare.js";
import { Generate } from "./generate.js";

const VIEWS = { train: Train, time: TimeMachine, look: Look, apart: TakeApart, counting: Counting,
  copied: Copied, compare: Compare, generate: Generate };
const at = id => document.getElementById(id);

class Lab {
  constructor() {
    const address = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const state = saved ?? address;
    this.isSaved = Boolean(saved);
    this.runs = [];
    this.run = undefined;                              // the summary of the chosen run
    this.wanted = state.run;
    this.step = state.step ?? "best";
    this.prompt = state.prompt ?? "";
    this.isTyped = Boolean(this.prompt);               // otherwise, the server suggests a prompt
    this.name = state.view in VIEWS ? state.view : undefined;
    this.tabs = Object.entries(VIEWS).map(([name, View]) => {
      const tab = element("button", View.title, at("views"));
      tab.type = "button";
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", "view");
      tab.onclick = () => this.open(name);
      return [name, tab];
    });
    at("views").onkeydown = event => this.moveTab(event);
    at("run").onchange = () => this.chooseRun(at("run").value);
    at("step").onchange = () => this.setStep(at("step").value);
    if (saved) this.becomeSaved();
    else this.saveButton = button(at("save"), "Save view", () => this.try(() => this.saveView()));
  }

  async start() {
    this.ready = this.try(async () => {
      this.setRuns(saved?.runs ?? await get("runs"));
      this.lessons = saved ? [] : await get("lessons");
    });
    await this.ready;
    if (!this.opening) this.open(this.name ?? (this.run ? "time" : "train"));
    if (!saved) setInterval(() => this.watch(async () => this.setRuns(await get("runs"))), 5000);
  }

  setRuns(runs) {
    this.runs = runs;
    const usable = runs.filter(run => !run.error && !run.is_starting);
    setChoices(at("run"), usable.length ? usable.map(run => [run.name, run.name]) : [["", "none yet"]]);
    const chosen = usable.find(run => run.name === (this.run?.name ?? this.wanted)) ?? this.run ?? usable[0];
    const isNew = chosen?.name !== this.run?.name;
    this.run = chosen;
    this.showRun();
    this.showLoss(chosen && !usable.includes(chosen));
    if (isNew && this.view) this.renew();
    else this.view?.renewRun?.();
  }

  // Say that the files of the chosen run were deleted or damaged while the page was open.
  showLoss(isLost) {
    if (isLost) this.problem(this.runs.find(run => run.name === this.run.name)?.error
      ?? `there is no run '${this.run.name}' any more: choose another run`);
    else if (this.isLost) this.problem();
    this.isLost = isLost;
  }

  chooseRun(name) {
    this.run = this.runs.find(run => run.name === name);
    this.step = "best";
    this.showRun();
    this.renew();
  }

  // Show another run in the same view. The view Train keeps its form.
  renew() {
    if (this.name === "train") this.view.show();
    else if (this.opening) this.open(this.name);       // otherwise, start() opens the view
  }

  showRun() {
    const { run } = this;
    at("facts").textContent = run ? `${run.kind}, ${run.parameters.toLocaleString("en")} parameters, trained on ` +
      `${run.data}; step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}` +
      (run.val_loss === null ? "" : `, lowest validation loss ${run.val_loss.toFixed(4)}`) : "";
    setChoices(at("step"), [["best", "best"], ...(run?.snapshots ?? []).map(step => [step, step.toLocaleString("en")])]);
    at("step").value = this.step;
    if (at("step").value !== String(this.step)) at("step").value = this.step = "best";
    if (run) at("run").value = run.name;
    this.save();
  }

  // Choose the step of a view that shows it already.
  noteStep(step) {
    this.step = at("step").value = String(step);
    this.save();
  }
  setStep(step) { this.step = String(step); this.showRun(); this.view?.show(); }
  setPrompt(prompt) {
    this.prompt = prompt;
    this.isTyped = true;
    forget("prompt=");                                 // the answers for the previous prompt
    this.save();
  }

  save() {
    if (saved) return;
    const state = { view: this.name ?? "", run: this.run?.name ?? "", step: this.step };
    if (this.isTyped) state.prompt = this.prompt;
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  }

  async open(name) {
    this.view?.hide?.();
    this.problem();
    this.name = name;
    this.tabs.forEach(([other, tab]) => {
      tab.setAttribute("aria-selected", other === name);
      tab.tabIndex = other === name ? 0 : -1;
    });
    this.showHint(VIEWS[name]);
    at("view").replaceChildren();
    forget();
    const opening = this.opening = {};
    this.view = undefined;
    await this.ready;                                  // the list of runs
    if (opening !== this.opening) return;
    this.showHint(VIEWS[name]);                        // now with links to the lessons
    const run = this.run?.name;
    if (!run && name !== "train") {
      this.problem("There is no run yet: train one first, in the view Train.");
      return;
    }
    if (run && !this.isTyped && this.promptOf !== run) {
      const answer = await this.try(() => get("prompt", { run }));
      if (opening !== this.opening) return;            // the reader has opened another view
      if (answer) [this.prompt, this.promptOf] = [answer.prompt, run];
    }
    this.view = new VIEWS[name](at("view"), this);
    if (saved) this.view.restore?.(saved.state);
    this.save();
    // Hide the empty parts until the first answer is there, so that the page does not jump.
    at("view").classList.add("opening");
    try {
      await Promise.race([this.view.show(), new Promise(resolve => setTimeout(resolve, 1000))]);
    } finally {
      if (opening === this.opening) at("view").classList.remove("opening");
    }
  }

  showHint({ hint, lessons }) {
    at("hint").replaceChildren(hint, lessons.length > 1 ? " Lessons: " : " Lesson: ");
    lessons.forEach((number, i) => {
      const lesson = this.lessons?.find(other => other.number === number);
      const link = element(lesson ? "a" : "span", number, at("hint"));
      if (lesson) Object.assign(link, { href: `lessons/${lesson.file}`, title: lesson.title, target: "_blank" });
      at("hint").append(i < lessons.length - 1 ? ", " : ".");
    });
  }

  // Save the open view as a page that needs no lab.
  async saveView() {
    this.saveButton.disabled = true;
    this.saveButton.textContent = "Saving …";
    try {
      await this.view?.loading;
      await allAnswers();
      const { name, run, runs, step, prompt } = this;
      const state = { view: name, run: run?.name, runs, step, prompt, state: this.view.state };
      await savePage(state, `nanogpt-${name}-${run?.name ?? ""}.html`.replaceAll(/[^\w.-]+/g, "-"));
    } finally {
      this.saveButton.disabled = false;
      this.saveButton.textContent = "Save view";
    }
  }

  becomeSaved() {
    at("views").hidden = at("run").disabled = at("step").disabled = true;
    at("title").textContent = `nanogpt lab: ${VIEWS[saved.view].title}`;
    at("save").textContent = `Saved on ${saved.date}. This page has only the answers that it had received by then.`;
  }

  moveTab(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const names = Object.keys(VIEWS), index = (names.indexOf(this.name) + step + names.length) % names.length;
    this.open(names[index]);
    this.tabs[index][1].focus();
  }

  problem(text) { at("problem").hidden = !text; at("problem").textContent = text ?? ""; }

  // Do something; if it fails with a Problem, show the message.
  async try(action) {
    this.problem();
    const doing = this.doing = {};
    at("view").setAttribute("aria-busy", true);
    try {
      return await this.watch(action);
    } finally {
      if (doing === this.doing) at("view").setAttribute("aria-busy", false);
    }
  }

  // Do the same, but do not clear the message of an earlier action first.
  async watch(action) {
    try {
      const result = await action();
      if (this.isOffline) this.problem();
      this.isOffline = false;
      return result;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.isOffline = error.isOffline;
      this.problem(error.message);
    }
  }

  // The parameters of every question about the chosen model.
  get model() { return { run: this.run.name, step: this.step }; }
}

new Lab().start();
