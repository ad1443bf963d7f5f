// Questions to the server of the lab. All addresses are relative to that of the page, so they contain its token.
//
// A view can be saved as a page that needs no server (see save.js). So this module keeps the answers that the open
// view gets. In a saved page, the same questions get these answers again.

// In a saved page: the view, its run, step and prompt, and its answers. Otherwise null.
export const saved = JSON.parse(document.getElementById("data")?.textContent ?? "null");
const kept = new Map();                            // answers by address, without the parameters view and turn
const pending = new Set();                         // the questions that wait for an answer
const MISSING = "this saved page does not have the answer: ask the lab that has the run";

const tab = Math.random().toString(36).slice(2);   // so that tabs do not cancel each other's questions

export class Problem extends Error {}              // the page shows its message to the user

const OTHER_TOKEN = "the lab was started again: open the address that the terminal prints";
const OFFLINE = "the lab does not answer: start nanogpt lab again, and open the address that the terminal prints";
const FAILED = "the lab failed: its terminal says why";

async function read(response) {
  if (response.status === 403) throw Object.assign(new Problem(OTHER_TOKEN), { isOffline: true });
  const answer = await response.json().catch(() => ({ error: FAILED }));
  if (answer.error) throw new Problem(answer.error);
  return answer.outdated ? undefined : answer;     // undefined if a newer question has replaced this one
}

async function request(address, options) {
  try {
    return await read(await fetch(address, options));
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw Object.assign(new Problem(OFFLINE), { isOffline: true });
  }
}

export function toQuery(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  return new URLSearchParams(given).toString();
}

const toAddress = (name, parameters) => `${name}?${toQuery(parameters)}`;

function recall(address) {
  if (!(address in saved.answers)) throw new Problem(MISSING);
  return saved.answers[address];
}

export async function get(name, { view, turn, ...question } = {}) {
  const address = toAddress(name, question);
  if (saved) return recall(address);
  const asking = request(toAddress(name, { ...question, view, turn }));
  pending.add(asking);
  try {
    const answer = await asking;
    if (answer) kept.set(address, answer);
    return answer;
  } finally {
    pending.delete(asking);
  }
}

// Wait until no question waits for an answer. An answer may lead to another question.
export async function allAnswers() {
  while (pending.size) {
    await Promise.allSettled([...pending]);
    await new Promise(resolve => setTimeout(resolve));
  }
}

export async function post(name, value) {
  if (saved) throw new Problem(MISSING);
  return request(name, { method: "POST", body: typeof value === "string" ? value : JSON.stringify(value) });
}

// Calls handlers[type](data) for each event of a stream. Returns a function that closes the stream.
export function listen(name, parameters, handlers) {
  const address = toAddress(name, parameters);
  if (saved) {
    const events = saved.answers[address] ?? [["problem", MISSING]];
    const timer = setTimeout(() => events.forEach(([type, value]) => handlers[type]?.(value)));
    return () => clearTimeout(timer);
  }
  const source = new EventSource(address), events = [];
  kept.set(address, events);
  for (const type of Object.keys(handlers)) source.addEventListener(type, event => {
    if (!event.data) return handlers[type]();          // a connection error
    const value = JSON.parse(event.data);
    if (events.at(-1)?.[0] === "runs" && type === "runs") events.pop();
    events.push([type, value]);
    handlers[type](value);
  });
  return () => source.close();
}

export const keptAnswers = () => Object.fromEntries(kept);

// Forget the answers to questions with this text in their address.
export function forget(text = "") {
  for (const address of kept.keys()) if (address.includes(text)) kept.delete(address);
}

// Asks the worker. A later question of the same asker makes its earlier questions outdated; these return undefined.
export class Asker {
  constructor(view) { this.view = `${tab}-${view}`; this.turn = 0; }
  begin() { this.turn = Date.now() > this.turn ? Date.now() : this.turn + 1; return this.turn; }
  ask(name, parameters, turn = this.begin()) {
    return get(name, { ...parameters, view: this.view, turn }).then(answer => turn === this.turn ? answer : undefined);
  }
}

// Generates text; calls onPiece for each piece. Returns a function that stops the generation.
export function generate(parameters, onPiece, onEnd = () => {}) {
  const finish = problem => { close(); onEnd(problem); };
  const close = listen("sample", parameters, { piece: onPiece, problem: finish, end: () => finish(),
    error: () => finish(OFFLINE) });
  return finish;
}
