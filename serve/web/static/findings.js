// What was found, beside the code: one card for each finding, with its fix as a diff.

import { badge, count, element, message, sureness } from "./dom.js";

const ORDER = ["error", "warning", "note"];

/** The cards of a document's findings. `titles` has the rules' titles by their ids. */
export function cards(editor, shown, titles, { onGo, onFix }) {
  return shown.findings.map((finding) => card(editor, shown, finding, titles, onGo, onFix));
}

function card(editor, shown, finding, titles, onGo, onFix) {
  const state = editor.stateOf(shown, finding);
  const title = titles.get(finding.rule) ?? finding.rule;
  const line = editor.lineOf(shown, finding);
  const fixable = finding.fix?.verified && finding.fix.edits.length > 0;
  return element(
    "li",
    { class: `finding ${finding.severity}`, "data-state": state },
    element(
      "h3",
      {},
      element("span", { class: "severity" }, finding.severity),
      element("button", { type: "button", class: "go", onclick: () => onGo(finding) }, `${title}, line ${line}`),
    ),
    element("p", { class: "message" }, message(finding.message)),
    element(
      "p",
      { class: "about" },
      element("code", {}, finding.rule),
      ` · confidence ${sureness(finding.confidence)}`,
    ),
    fixable && state !== "fixed" ? difference(editor.difference(shown, finding.fix)) : null,
    fixable && state === "open"
      ? element(
          "button",
          { type: "button", class: "fix", "aria-label": `Apply the fix in line ${line}`, onclick: () => onFix(finding) },
          "Apply fix",
        )
      : null,
    state === "fixed" ? element("p", { class: "outcome" }, "Fix applied. Ctrl+Z takes it back.") : null,
    state === "changed" ? element("p", { class: "outcome" }, "The code changed here. Analyse again.") : null,
  );
}

function difference({ before, after }) {
  const row = (mark, name, text) =>
    element("span", { class: name }, element("span", { class: "unseen" }, `${name}: `), `${mark} ${text}\n`);
  return element(
    "pre",
    { class: "diff", "aria-label": "The fix", tabindex: "0" },
    before.map((text) => row("−", "removed", text)),
    after.map((text) => row("+", "added", text)),
  );
}

/** "2 errors, 1 note" */
export function inWords(findings) {
  const parts = ORDER.map((severity) => [severity, findings.filter((finding) => finding.severity === severity).length])
    .filter(([, number]) => number > 0)
    .map(([severity, number]) => count(number, severity));
  return parts.length ? parts.join(", ") : "no findings";
}

/** What was left out, and why. */
export function skippedUnits(units) {
  if (!units.length) return [];
  return [
    element("h3", {}, `Not analysed: ${count(units.length, "unit")}`),
    element(
      "ul",
      {},
      units.map((unit) => element("li", {}, `${unit.name} (lines ${unit.start_line} to ${unit.end_line}): ${unit.reason}`)),
    ),
  ];
}

/** Time and tokens of one analysis. */
export function costs(report, seconds, firstSeconds) {
  const { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: written } = report.usage;
  const share = prompt ? Math.round((100 * cached) / prompt) : 0;
  return [
    badge("time", `${seconds.toFixed(2)} s`, "from sending the code to the whole report"),
    firstSeconds === null ? null : badge("first finding", `${firstSeconds.toFixed(2)} s`),
    badge("cached", `${share}%`, `${cached} of ${prompt} prompt tokens did not have to be computed`),
    badge("tokens", `${prompt.toLocaleString("en")} read, ${written.toLocaleString("en")} written`),
  ].filter(Boolean);
}

/** The numbers that were computed from the code. */
export function metrics(numbers) {
  const { total, max, functions } = numbers.cyclomatic_complexity;
  const worst = [...functions].sort((one, other) => other.complexity - one.complexity);
  const facts = [
    ["lines", numbers.lines],
    ["lines of code", numbers.code_lines],
    ["functions", numbers.functions],
    ["classes", numbers.classes],
    ["complexity", total],
    ["most complex", max],
  ];
  return [
    element("h3", {}, "Computed from the code"),
    element("dl", { class: "facts" }, facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value.toLocaleString("en"))))),
    worst.length
      ? element(
          "details",
          {},
          element("summary", {}, "Cyclomatic complexity of each function"),
          element(
            "table",
            {},
            element("thead", {}, element("tr", {}, ["function", "lines", "complexity"].map((name) => element("th", { scope: "col" }, name)))),
            element("tbody", {}, worst.map((one) => element("tr", {},
              element("th", { scope: "row" }, element("code", {}, one.name)),
              element("td", {}, `${one.start_line}–${one.end_line}`),
              element("td", { class: "number" }, String(one.complexity))))),
          ),
        )
      : null,
  ].filter(Boolean);
}
