// The model card: what is served, what was kept of its teacher, how large and fast each form of it is.

import { get } from "./api.js";
import { bars } from "./charts.js";
import { count, element } from "./dom.js";

const percent = (share) => `${(100 * share).toFixed(0)}%`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const whole = (number) => Math.round(number).toLocaleString("en");
const RETENTION = {
  f1_retention: "F1 on planted defects, of the teacher's",
  hygiene_f1_retention: "F1 on hygiene, of the teacher's",
  answer_validity: "answers that are valid",
  length_retention: "length of the summaries, of the teacher's",
  term_retention: "terms of the summaries, of the teacher's",
};

/** Fill the tab. `served` is the answer of GET v1/bundle. */
export async function showCard(panel, served) {
  const evaluation = await get("v1/bundle/report", [404]);
  panel.replaceChildren(
    identity(served),
    ...(evaluation ? results(evaluation, served) : [part("Evaluation", "This bundle carries no evaluation.")]),
    rules(served),
  );
}

function results(evaluation, served) {
  try {
    return [kept(evaluation), scores(evaluation), sizes(evaluation), perRule(evaluation, served)];
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return [part("Evaluation", "This bundle's report.json is of another version than this page, which can not show it.")];
  }
}

function identity({ model, language, context_length: context, rules: catalogue }) {
  const facts = [
    ["name", model.name],
    ["revision", model.revision],
    ["language", language],
    ["weights", model.quantization],
    ["engine", model.engine],
    ["context", `${whole(context)} tokens`],
    ["rules", String(catalogue.length)],
  ];
  return part(
    "The model that answers here",
    element("dl", { class: "facts" }, facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    element("p", { class: "about" }, "sha256 of its weights: ", element("code", {}, model.weights_sha256)),
  );
}

function kept({ retention, gate, failures, units, gate_passed: passed }) {
  const rows = Object.entries(retention);
  return part(
    "What was kept of the teacher",
    element("p", {}, `Measured on ${count(units.projects, "project")} the model never saw: `
      + `${count(units.natural, "unit")} as written and ${units.planted} with a planted defect.`),
    bars("What was kept of the teacher", rows.map(([name, value]) => ({ name: short(name), value, text: percent(value) })),
      { most: Math.max(1, ...rows.map(([, value]) => value)) }),
    table(["measure", "kept", "the gate's least"], rows.map(([name, value]) =>
      [RETENTION[name] ?? name, percent(value), percent(gate[name] ?? 0)])),
    element("p", {}, passed ? "The gate was passed." : `The gate was not passed: ${failures.join("; ")}.`),
  );
}

function scores({ rows, baselines = [] }) {
  const interval = (name) => rows.map(({ model, scores: all }) => ({
    name: model, value: all[name].value, low: all[name].low, high: all[name].high, text: all[name].value.toFixed(2),
  }));
  const shown = rows.at(-1).shown;
  const lines = [
    ...rows.map((row) => [row.model, row.scores]),
    ...(shown ? [[`${rows.at(-1).model}, as served`, shown]] : []),
    ...baselines.map((baseline) => [baseline.name, baseline.scores]),
  ];
  return part(
    "How good its findings are",
    element("p", {}, "A finding counts as right when rule and line are. Lines are 95% intervals."),
    element("h3", {}, "F1 on planted defects"),
    bars("F1 on planted defects", interval("f1"), { most: 1 }),
    element("h3", {}, "F1 on hygiene"),
    bars("F1 on hygiene", interval("hygiene_f1"), { most: 1 }),
    table(
      ["model", "precision", "recall", "F1", "hygiene F1", "false per 100 clean"],
      lines.map(([name, all]) => [
        name, all.precision.value.toFixed(2), all.recall.value.toFixed(2), all.f1.value.toFixed(2),
        all.hygiene_f1.value.toFixed(2), all.false_per_100_clean.value.toFixed(1),
      ]),
    ),
    element("p", {}, "“As served” is at the model's own thresholds, which hide what it is not sure of. Planted defects are more regular "
      + "than real ones: on real code expect fewer of the findings to be right."),
  );
}

function sizes({ rows }) {
  return part(
    "Size and speed",
    element("h3", {}, "Bytes on disk (logarithmic)"),
    bars("Bytes on disk", rows.map(({ model, bytes_on_disk: bytes }) =>
      ({ name: model, value: bytes, text: megabytes(bytes) })), { logarithmic: true }),
    element("h3", {}, "Tokens written a second, one answer after the other (logarithmic)"),
    bars("Tokens a second", rows.map(({ model, tokens_per_second: speed }) =>
      ({ name: model, value: speed, text: whole(speed) })), { logarithmic: true }),
    table(
      ["model", "parameters", "on disk", "peak memory", "tokens a second"],
      rows.map((row) => [
        row.model, `${(row.parameters / 1e6).toFixed(2)}M`, megabytes(row.bytes_on_disk),
        megabytes(row.peak_memory_bytes), whole(row.tokens_per_second),
      ]),
    ),
  );
}

function perRule({ rows }, served) {
  const found = rows.at(-1).scores.by_rule;
  const share = (part, all) => (all ? percent(part / all) : "–");
  return part(
    "Rule by rule",
    table(
      ["rule", "found", "missed", "false", "precision", "recall"],
      served.rules.filter(({ id }) => found[id]).map(({ id, title }) => {
        const { found: right, missed, false: wrong } = found[id];
        return [title, right, missed, wrong, share(right, right + wrong), share(right, right + missed)];
      }),
    ),
  );
}

function rules({ rules: catalogue, thresholds }) {
  return part(
    "The rules it can name",
    table(
      ["rule", "severity", "title", "shown from a confidence of"],
      catalogue.map(({ id, severity, title }) =>
        [element("code", {}, id), severity, title, id in thresholds ? thresholds[id].toFixed(2) : "0.50"]),
    ),
  );
}

function part(heading, ...content) {
  return element("section", { class: "part" }, element("h2", {}, heading), content);
}

function table(columns, lines) {
  const kind = (cell) => ({ class: /^[\d.,–]+(%| MB|M)?$/.test(cell) ? "number" : null });
  const head = columns.map((name, column) => element("th", { scope: "col", ...(column ? kind(lines[0]?.[column]) : {}) }, name));
  const body = lines.map(([first, ...others]) => element("tr", {},
    element("th", { scope: "row" }, first),
    others.map((cell) => element("td", kind(cell), cell))));
  return element("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": columns.join(", ") },
    element("table", {},
      element("thead", {}, element("tr", {}, head)),
      element("tbody", {}, body)));
}

function short(name) {
  return name.replace("_retention", "").replaceAll("_", " ").replace("f1", "F1");
}
