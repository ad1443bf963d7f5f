import { element } from "./dom.js";
import { Asker } from "./api.js";
import { promptField } from "./controls.js";
import { Inside } from "./inside.js";

export class Look {
  static title = "Look inside";
  static hint = "Type a prompt and watch how each layer changes the prediction. Look for heads that attend to " +
    "the previous character, or to an earlier copy of the current one.";
  static lessons = [4, 5, 9];

  constructor(parent, lab) {
    this.lab = lab;
    this.asker = new Asker("look");
    promptField(parent, lab, () => this.show());
    this.inside = new Inside(element("div", undefined, parent));
  }

  get state() { return this.inside.selected; }
  restore(selected) { this.inside.selected = selected; }

  async show() {
    const { lab } = this;
    await lab.try(async () => {
      const answer = await this.asker.ask("inspect", { ...lab.model, prompt: lab.prompt });
      if (answer) this.inside.show(answer);
    });
  }
}
