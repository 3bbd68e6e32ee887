// Questions to the service, and ids on their way to it and back.
//
// An id is held as its JSON text, `"B0SMPL0001"` or `17`: a number of 64 bits would lose digits in
// JavaScript, and the text is what goes back to the service.

const PATIENCE_MS = 30_000; // longer than the service itself waits
const asked = new Map(); // what is at work, by purpose

// The API key, which lives as long as the tab.
export const key = {
  get: () => sessionStorage.getItem("recsys-key"),
  set: (text) => sessionStorage.setItem("recsys-key", text),
  forget: () => sessionStorage.removeItem("recsys-key"),
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const label = (id) => String(id.startsWith('"') ? JSON.parse(id) : id);
const plain = (id) => (id.startsWith('"') ? JSON.stringify(JSON.parse(id)) : id); // one spelling
const ID = /"item":\s*(-?\d+|"(?:[^"\\]|\\.)*")/g;
const idsAsText = (body) => body.replace(ID, (_, id) => `"item":${JSON.stringify(plain(id))}`);

// The answer and its milliseconds, or undefined where a later question of the same purpose took
// this one's place: so no answer is ever overtaken by an earlier one.
export async function ask(purpose, path, body) {
  asked.get(purpose)?.abort();
  const newer = new AbortController();
  asked.set(purpose, newer);
  const request = {
    method: body === undefined ? "GET" : "POST",
    headers: { "content-type": "application/json", ...authorization() },
    body,
    signal: AbortSignal.any([newer.signal, AbortSignal.timeout(PATIENCE_MS)]),
  };
  const started = performance.now();
  try {
    const response = await fetch(path, request);
    const text = await response.text();
    if (newer.signal.aborted) return undefined;
    if (!response.ok) throw new Refused(response.status, errorIn(text, response.status));
    return { answer: JSON.parse(idsAsText(text)), ms: performance.now() - started };
  } catch (error) {
    if (newer.signal.aborted) return undefined;
    if (error instanceof Refused) throw error;
    if (error.name === "TimeoutError") throw new Refused(0, "The service does not answer.");
    if (error instanceof SyntaxError) throw new Refused(0, "The service’s answer cannot be read.");
    if (error instanceof TypeError) throw new Refused(0, "The service cannot be reached.");
    throw error;
  }
}

const authorization = () => (key.get() ? { authorization: `Bearer ${key.get()}` } : {});

function errorIn(text, status) {
  try {
    return String(JSON.parse(text).error);
  } catch {
    return `The service answered ${status} and did not say why.`;
  }
}

// Ids go into a body as the JSON text that they are.
export function withIds(lists, rest) {
  const parts = Object.entries(lists).map(([name, ids]) => `"${name}":[${ids.join(",")}]`);
  return `{${parts.join(",")},${JSON.stringify(rest).slice(1)}`;
}

// Ids are written as they look; a string that looks like a number takes its quotes along.
const NUMBER = /^-?(0|[1-9]\d*)$/;
export const written = (id) => (/^"/.test(label(id)) || NUMBER.test(label(id)) ? id : label(id));

export function read(text) {
  if (NUMBER.test(text)) return text;
  try {
    return text.startsWith('"') ? JSON.stringify(JSON.parse(text)) : JSON.stringify(text);
  } catch {
    return JSON.stringify(text);
  }
}
