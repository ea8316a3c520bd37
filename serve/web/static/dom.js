// Making elements. Text is only ever set as text: nothing a server or a file says is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick: …`) and children; null and false are left out. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function drawing(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** "1 finding", "2 findings". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** A badge: what it is about and a value. */
export function badge(name, value, title = null) {
  return element("span", { class: "badge", title }, element("span", { class: "badge-name" }, name), ` ${value}`);
}

/** A message, with what stands in `backquotes` as code. */
export function message(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

/** A confidence in whole percent, rounded down: what is not certain never reads as 100%. */
export function sureness(confidence) {
  return `${Math.floor(100 * confidence + 1e-9)}%`;
}
