// Saves the open view, with the answers that it has received, as one page that needs no server.

import { element } from "./dom.js";
import { keptAnswers } from "./api.js";

// `state` is what the page needs to open at this view; `name` is the name of the file.
export async function savePage(state, name) {
  const template = await (await fetch("frame")).text();
  const date = new Date().toISOString().slice(0, 10);
  const data = JSON.stringify({ ...state, date, answers: keptAnswers() }).replaceAll("<", "\\u003c");
  const page = template.replace('id="data">null<', () => `id="data">${data}<`);
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
