// Questions to the server of the lab. All addresses are relative: they contain the token.

const tab = Math.random().toString(36).slice(2);   // so that two tabs do not cancel each other

export class Problem extends Error {}              // its message is meant for the reader

async function read(response) {
  const answer = await response.json().catch(() => ({ error: "the lab gave no answer: is it still running?" }));
  if (answer.error) throw new Problem(answer.error);
  return answer.outdated ? undefined : answer;     // a newer question has replaced an outdated one
}

async function request(address, options) {
  try {
    return await read(await fetch(address, options));
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw Object.assign(new Problem("the lab does not answer: start nanogpt lab again and open its new address"),
      { isOffline: true });
  }
}

export function toQuery(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  return new URLSearchParams(given).toString();
}

export const get = (name, parameters = {}) => request(`${name}?${toQuery(parameters)}`);
export const post = (name, value) => request(name, { method: "POST", body: JSON.stringify(value) });
export const postText = text => request("text", { method: "POST", body: text });

// Asks the worker. A later question of the same asker makes earlier ones outdated: they give undefined.
export class Asker {
  constructor(view) { this.view = `${tab}-${view}`; this.turn = 0; }
  begin() { this.turn = Date.now() > this.turn ? Date.now() : this.turn + 1; return this.turn; }
  ask(name, parameters, turn = this.begin()) {
    return get(name, { ...parameters, view: this.view, turn }).then(answer => turn === this.turn ? answer : undefined);
  }
}

// Generates text; calls onPiece for each piece. Returns a function that stops it.
export function generate(parameters, onPiece, onEnd = () => {}) {
  const source = new EventSource(`sample?${toQuery(parameters)}`);
  const finish = problem => { source.close(); onEnd(problem); };
  source.addEventListener("piece", event => onPiece(JSON.parse(event.data)));
  source.addEventListener("problem", event => finish(JSON.parse(event.data)));
  source.addEventListener("end", () => finish());
  source.onerror = () => finish("the generation was refused: check the settings");
  return finish;
}
