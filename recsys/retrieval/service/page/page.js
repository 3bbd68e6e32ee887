// The page of the service: a history is built by clicks, and each click asks for a new list.
//
// Texts of the service are untrusted and become text nodes or properties, never markup. Ids are
// held as asking.js says.

import { Refused, ask, key, label, read, withIds, written } from "/asking.js";
import { bar, cut, fill, make, scored, shown, unseen } from "/elements.js";

const at = (id) => document.getElementById(id);

const state = {
  history: [], // ids, oldest first
  unknown: new Set(), // those that the model does not know
  offset: 0, // of the page of the catalogue
  before: null, // what the list looked like, {k, ranks: Map from id to rank}
  default: null, // the model that answers where none is named
  recsys: "",
};
const titles = new Map(); // id to title, of all that was ever answered
const wrong = new Map(); // what went wrong, by purpose

const named = (id) => titles.get(id) || label(id);

/* What goes wrong */

// Runs a question, and says what goes wrong until the next of the same purpose goes well.
async function trying(purpose, question) {
  try {
    await question();
    alarm(purpose, null);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) askForKey();
    else alarm(purpose, error);
  }
}

function alarm(purpose, error) {
  wrong.delete(purpose);
  if (error !== null) wrong.set(purpose, error);
  const errors = [...wrong.values()];
  at("alert-text").textContent = [...new Set(errors.map((one) => one.message))].join(" ");
  at("again").hidden = !errors.some(({ status }) => status === 0 || status >= 500);
  at("alert").hidden = errors.length === 0;
}

function askForKey() {
  const refused = key.get() !== null;
  key.forget();
  if (refused) at("key-note").textContent = "The service does not know that key.";
  if (!at("key-form").hidden) return;
  at("key-form").hidden = false;
  at("key").focus();
}

// A row whose button adds the item; `parts` stand between the title and the button at the end.
function row(item, ...parts) {
  titles.set(item.item, item.title);
  const title = make("span", { className: "title", dir: "auto" }, named(item.item));
  const add = make("button", { type: "button", className: "add" }, title);
  add.append(unseen(", add to the history"));
  add.addEventListener("click", () => addToHistory(item.item));
  const like = make("button", { type: "button", className: "like" }, "similar");
  like.append(unseen(` to ${named(item.item)}`));
  like.addEventListener("click", () => showSimilar(item.item));
  const id = make("bdi", { className: "id" }, item.title ? label(item.item) : "");
  const line = make("li", {}, add, id, ...parts, like);
  line.dataset.id = label(item.item);
  return line;
}

/* The catalogue */

const perPage = () => (matchMedia("(max-width: 48rem)").matches ? 5 : 10);

function find() {
  if (state.default === null) return undefined; // no model to ask yet
  return trying("items", async () => {
    const search = at("search").value.trim();
    const limit = perPage();
    const page = { search, limit, offset: state.offset, model: at("model").value };
    const found = await ask("items", `/items?${new URLSearchParams(page)}`);
    if (found) showFound(found.answer, search, limit);
  });
}

function showFound({ total, items }, search, limit) {
  const last = state.offset + items.length;
  const range = `${state.offset + 1}–${last} of ${total.toLocaleString("en")}`;
  const kind = search ? "found" : "items, most frequent first";
  at("found").textContent = items.length ? `${range} ${kind}` : "No item has all these words.";
  fill(at("items"), items.map(foundRow));
  at("previous").disabled = state.offset === 0;
  at("next").disabled = last >= total;
  at("previous").dataset.to = Math.max(0, state.offset - limit);
  at("next").dataset.to = last;
  if (document.activeElement.disabled) at(last < total ? "next" : "previous").focus();
}

function foundRow(item) {
  const counted = item.count === null ? "" : `${item.count.toLocaleString("en")}×`;
  const count = make("span", { className: "count", title: "Times in the training data" }, counted);
  const note = item.available ? [] : [make("span", { className: "mark" }, "unavailable")];
  return row(item, ...note, count);
}

/* The history, which is kept in the address */

function addToHistory(id) {
  at("similar").close();
  changeHistory([...state.history, id]);
  showLatest();
}

function changeHistory(ids) {
  state.history = ids;
  showHistory();
  history.pushState(null, "", `#${address()}`);
  return recommend();
}

function showHistory() {
  const chips = state.history.map((id, place) => chip(id, place));
  const hint = make("li", { className: "hint" }, "Click items to build a history.");
  fill(at("history"), chips.length ? chips : [hint]);
  at("clear").disabled = chips.length === 0;
}

function showLatest() {
  at("history").scrollLeft = at("history").scrollWidth;
}

const without = (place) => state.history.filter((_, other) => other !== place);

function chip(id, place) {
  const title = make("span", { className: "title", dir: "auto", title: label(id) }, named(id));
  const remove = make("button", { type: "button", className: "remove" }, "×");
  remove.ariaLabel = `Remove ${named(id)}`;
  remove.addEventListener("click", () => changeHistory(without(place)));
  const strange = state.unknown.has(JSON.stringify(JSON.parse(id)));
  const note = strange ? [make("span", { className: "mark" }, "unknown")] : [];
  const line = make("li", { className: "chip" }, title, ...note, remove);
  line.dataset.id = label(id);
  return line;
}

function address() {
  const { k, score, diversity, filters } = conditions();
  const parts = new URLSearchParams();
  if (at("model").value !== state.default) parts.set("model", at("model").value);
  if (k !== 10) parts.set("k", k);
  if (score !== "product") parts.set("score", score);
  if (diversity) parts.set("diversity", diversity);
  if (filters) parts.set("filters", filters);
  const ids = state.history.map((id) => encodeURIComponent(written(id))).join(",");
  return [ids && `history=${ids}`, String(parts)].filter(Boolean).join("&");
}

async function restore() {
  const parts = new URLSearchParams(location.hash.slice(1));
  // Not from `parts`, which have lost the difference between a comma in an id and one between ids.
  const ids = /(?:^#|&)history=([^&]*)/.exec(location.hash)?.[1] ?? "";
  state.history = ids.split(",").filter(Boolean).map(decoded).map(read);
  const models = [...at("model").options].map((option) => option.value);
  const wanted = parts.get("model");
  at("model").value = models.includes(wanted) ? wanted : state.default;
  at("k").value = parts.get("k") ?? 10;
  at("score").value = parts.get("score") === "probability" ? "probability" : "product";
  at("diversity").value = Number(parts.get("diversity")) || 0;
  at("filters").value = parts.get("filters") ?? "";
  showDiversity();
  showHistory();
  await Promise.all([find(), recommend(), learnTitles()]);
  showLatest();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a percent sign that somebody typed
  }
}

// An address names ids alone; a list that may hold these items only has their titles.
function learnTitles() {
  const strange = [...new Set(state.history.filter((id) => !titles.has(id)))].slice(0, 1000);
  if (strange.length === 0) return undefined;
  return trying("titles", async () => {
    const lists = { history: strange, allow: strange };
    const rest = { k: strange.length, exclude_seen: false, model: at("model").value };
    const found = await ask("titles", "/recommend", withIds(lists, rest));
    if (!found) return;
    for (const item of found.answer.items) titles.set(item.item, item.title);
    showHistory();
  });
}

/* The list */

function conditions() {
  return {
    model: at("model").value,
    k: at("k").validity.valid ? at("k").valueAsNumber : (state.before?.k ?? 10),
    score: at("score").value,
    diversity: at("diversity").valueAsNumber,
    filters: at("filters").value.trim() || null,
  };
}

function recommend() {
  return trying("recommend", async () => {
    const question = { ...conditions(), reasons: true };
    const list = at("recommended");
    list.ariaBusy = "true";
    try {
      const body = withIds({ history: state.history }, question);
      const found = await ask("recommend", "/recommend", body);
      if (!found) return;
      sayFilters("");
      showList(found.answer, question, found.ms);
    } catch (error) {
      list.ariaBusy = "false";
      list.classList.add("stale");
      if (state.before) at("said").textContent = "Below is the list before.";
      const ofFilters = question.filters && error.status === 422 && /filter/.test(error.message);
      sayFilters(ofFilters ? error.message : "");
      if (!ofFilters) throw error;
    }
  });
}

function sayFilters(error) {
  at("filters-error").textContent = error;
  at("filters").ariaInvalid = String(error !== "");
}

function showList(answer, question, ms) {
  const before = state.before;
  state.before = { k: question.k, ranks: new Map(answer.items.map(({ item }, rank) => [item, rank])) };
  state.unknown = new Set(answer.unknown.map((id) => JSON.stringify(id)));
  const share = question.score === "probability";
  const scores = answer.items.map((item) => item.score);
  const rows = answer.items.map((item, rank) => {
    const parts = [
      scored(item.score, share),
      bar(item.score, scores),
      reason(item, answer.fallback),
      moved(item.item, rank, before),
    ];
    return row(item, ...parts);
  });
  fill(at("recommended"), rows);
  at("recommended").ariaBusy = "false";
  at("recommended").classList.remove("stale");
  at("said").textContent = inWords(answer, ms);
  at("versions").textContent = versionsOf(answer);
  showHistory();
}

function reason({ because }, fallback) {
  const line = make("span", { className: "reason" });
  if (because === null) {
    line.append(fallback ? "one of the most popular" : "no single event stands out");
    return line;
  }
  const title = because.title || label(because.item);
  line.append("because of ", make("bdi", { className: "cause", title }, cut(title)));
  if (because.gain !== null) line.append(`, +${shown(because.gain)}`);
  return line;
}

function moved(id, rank, before) {
  const move = make("span", { className: "move" });
  if (before === null) return move;
  const ups = before.ranks.has(id) ? before.ranks.get(id) - rank : null;
  // Behind the end of a shorter list there may have been anything.
  if (ups === null && rank < Math.max(before.k, before.ranks.size)) move.append("new");
  if (ups > 0) move.append(`up ${ups}`);
  if (ups < 0) move.append(`down ${-ups}`);
  move.dataset.way = ups === null ? "new" : String(Math.sign(ups));
  return move;
}

function inWords({ items, model, fallback, short }, ms) {
  const words = [`${items.length} items by ${model} in ${ms.toFixed(ms < 10 ? 1 : 0)} ms`];
  if (fallback) {
    const why = state.history.length ? "nothing of the history is known" : "no history yet";
    words.push(`${why}, so these are the most popular items`);
  }
  if (short) words.push(short);
  return words.join(" · ");
}

function versionsOf({ model_version: model, catalogue_version: changes, index_version: index }) {
  const search = index === null ? "no index, every item is scored" : `index ${index}`;
  return `recsys ${state.recsys} · model ${model} · catalogue ${changes} · ${search}`;
}

/* Similar items */

function showSimilar(id) {
  return trying("similar", async () => {
    at("similar-title").textContent = `Similar to ${named(id)}`;
    if (!at("similar").open) at("similar-items").replaceChildren();
    at("similar-said").textContent = "";
    if (!at("similar").open) at("similar").showModal();
    const about = { item: label(id), k: 10, model: at("model").value };
    try {
      const found = await ask("similar", `/similar?${new URLSearchParams(about)}`);
      if (!found) return;
      const scores = found.answer.items.map((item) => item.score);
      const rows = found.answer.items.map((item) =>
        row(item, scored(item.score), bar(item.score, scores)));
      fill(at("similar-items"), rows);
      at("similar-said").textContent = found.answer.short ?? "Cosines of the items’ vectors.";
    } catch (error) {
      if (error.status === 422) at("similar-said").textContent = error.message;
      else {
        at("similar").close(); // what is the matter is said on the page, which it would cover
        throw error;
      }
    }
  });
}

/* What starts it all */

function start() {
  return trying("version", async () => {
    const found = await ask("version", "/version");
    if (!found) return;
    const { models, default: first, recsys } = found.answer;
    Object.assign(state, { default: first, recsys });
    const names = Object.entries(models);
    at("model").replaceChildren(
      ...names.map(([name, { model }]) => make("option", { value: name }, `${name} (${model})`)));
    at("model").disabled = names.length < 2;
    at("key-form").hidden = true;
    await restore();
  });
}

// The last call counts, once no other came for a while.
function later(action, ms) {
  let waiting;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(action, ms);
  };
}

function findFrom(offset) {
  state.offset = offset;
  return find();
}

function conditionsChanged() {
  if (state.default === null) return;
  history.replaceState(null, "", `#${address()}`);
  recommend();
}

function showDiversity() {
  at("diversity-shown").textContent = at("diversity").valueAsNumber.toFixed(2);
}

function takeKey(event) {
  event.preventDefault();
  const typed = at("key").value.trim();
  if (!/^[!-~]+$/.test(typed)) {
    at("key-note").textContent = "A key is made of ASCII signs without spaces.";
    return;
  }
  key.set(typed);
  at("key").value = "";
  start();
}

at("search").addEventListener("input", later(() => findFrom(0), 150));
for (const button of [at("previous"), at("next")]) {
  button.addEventListener("click", () => findFrom(Number(button.dataset.to)));
}
at("model").addEventListener("change", () => {
  conditionsChanged();
  findFrom(0);
});
at("diversity").addEventListener("input", showDiversity);
const soon = later(conditionsChanged, 200);
at("conditions").addEventListener("input", (event) => {
  // Half a filter is no filter: it counts at Enter, or when the field is left.
  if (event.target !== at("filters") && event.target.validity.valid) soon();
});
at("filters").addEventListener("change", conditionsChanged);
at("k").addEventListener("change", () => at("k").reportValidity());
at("conditions").addEventListener("submit", (event) => event.preventDefault());
at("clear").addEventListener("click", () => {
  changeHistory([]);
  at("history-title").focus();
});
at("close").addEventListener("click", () => at("similar").close());
at("key-form").addEventListener("submit", takeKey);
at("again").addEventListener("click", () =>
  state.default === null ? start() : Promise.all([find(), recommend()]));
addEventListener("hashchange", () => (state.default === null ? start() : restore()));
start();
