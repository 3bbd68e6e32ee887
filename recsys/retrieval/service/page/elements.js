// Elements and numbers, as the lists of the page show them.

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A list made anew keeps the focus at the place where it was, for the keyboard to go on from.
export function fill(list, rows) {
  const kind = list.contains(document.activeElement) && document.activeElement.className;
  const place = [...list.getElementsByClassName(kind || "none")].indexOf(document.activeElement);
  list.replaceChildren(...rows);
  if (place < 0) return;
  const now = list.getElementsByClassName(kind);
  const heading = list.closest("section, dialog").querySelector("h2");
  (now[Math.min(place, now.length - 1)] ?? heading).focus();
}

export const unseen = (text) => make("span", { className: "unseen" }, text);

// From zero, or from the lowest score of the list where that lies below.
export function bar(score, scores) {
  const from = Math.min(0, ...scores);
  const element = make("span", { className: "bar", ariaHidden: "true" });
  element.style.setProperty("--share", (score - from) / (Math.max(...scores) - from) || 0);
  return element;
}

export function shown(number, share = false) {
  if (share) return `${Number((100 * number).toPrecision(3))}%`;
  return Number.isInteger(number) ? String(number) : number.toFixed(Math.abs(number) < 100 ? 3 : 1);
}

export const scored = (score, share) => make("span", { className: "score" }, shown(score, share));

export function cut(text) {
  const signs = [...text]; // not halves of them
  return signs.length > 80 ? `${signs.slice(0, 79).join("")}…` : text;
}
