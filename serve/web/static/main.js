// The page: what the controls do, and what is shown of the analyses that run.

import { analyze, Failure, forgetKey, get, setKey } from "./api.js";
import { showCard } from "./card.js";
import { badge, count, element } from "./dom.js";
import { Editor } from "./editor.js";
import { choose, fromDrop, fromInput, readText } from "./files.js";
import { cards, costs, inWords, metrics, skippedUnits } from "./findings.js";
import { setUpSearch, showSearch } from "./search.js";
import { setUpTabs, setUpTheme } from "./views.js";

const SUFFIXES = { python: [".py", ".pyi"] };
const SIDE_BY_SIDE = 2;
const EXAMPLE = `def find_order(orders, number, seen=[]):
    """Return the order with this number, or None."""
    for order in orders:
        if order.number == None:
            continue
        if order.number != number:
            return order
    return None


def read_price(text):
    """Parse a price; None when the text is not one."""
    try:
        return float(text)
    except:
        return None
`;

const at = (id) => document.getElementById(id);
const files = [{ path: "pasted.py", result: null }];
let current = files[0];
let running = null;
let titles = new Map();
let suffixes = SUFFIXES.python;

const editor = new Editor(at("editor"), {
  onChange: showFindings,
  onRun: run,
  onFix: (finding) => editor.applyFix(finding),
});
current.document = editor.document(EXAMPLE);
editor.show(current.document);

/** Everything that is to be analysed, one after the other or a few side by side. */
async function run() {
  if (running) return;
  hideAlert();
  running = new AbortController();
  const { signal } = running;
  at("run").disabled = true;
  at("stop").hidden = false;
  const waiting = [...files];
  const work = async () => {
    for (let file = waiting.shift(); file && !signal.aborted; file = waiting.shift()) await analyzeFile(file, signal);
  };
  try {
    await Promise.all(Array.from({ length: Math.min(SIDE_BY_SIDE, files.length) }, work));
    say(files.length === 1 ? summaryOf(current) : summaryOfAll());
  } catch (error) {
    running.abort();
    showFailure(error);
  } finally {
    running = null;
    at("run").disabled = false;
    at("stop").hidden = true;
    showFiles();
  }
}

async function analyzeFile(file, signal) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const found = [];
  let first = null;
  try {
    await open(file);
  } catch (error) {
    file.result = { problem: error.message };
    return;
  }
  editor.analysing(file.document);
  file.result = { running: true };
  refresh(file);
  const request = { code: editor.textOf(file.document), path: file.path };
  if (!at("own-thresholds").checked) request.min_confidence = Number(at("confidence").value);
  try {
    const report = await analyze(request, signal, {
      finding: (finding) => {
        first ??= seconds();
        found.push(finding);
        found.sort((one, other) => one.start_line - other.start_line || one.start_column - other.start_column);
        editor.setFindings(file.document, [...found]);
        say(`Analysing ${file.path}: ${count(found.length, "finding")} so far.`);
        refresh(file);
      },
      unit: ({ done, total }) => say(`Analysing ${file.path}: ${done} of ${count(total, "unit")}.`),
      waiting: (pause) => say(`The server is busy. Asking again in ${count(pause, "second")}.`),
    });
    editor.setFindings(file.document, report.findings);
    file.result = { report, seconds: seconds(), first };
  } catch (error) {
    file.result = null;
    // Of many files, one that does not parse does not stop the others.
    if (files.length === 1 || !(error instanceof Failure) || ![413, 422].includes(error.status)) throw error;
    file.result = { problem: error.message };
  } finally {
    refresh(file);
  }
}

async function open(file) {
  if (!file.document) file.document = editor.document(await readText(file.file));
}

function refresh(file) {
  if (file === current) showFindings();
  showFiles();
}

/** The right-hand side, for the file that is shown. */
function showFindings() {
  const { document: shown, result } = current;
  const focused = [...at("findings").children].findIndex((child) => child.contains(document.activeElement));
  at("findings").replaceChildren(
    ...cards(editor, shown, titles, { onGo: (finding) => editor.goTo(finding), onFix: (finding) => editor.applyFix(finding) }),
  );
  // Cards are made anew while findings stream in: who was reading one stays there.
  if (focused >= 0) at("findings").children[focused]?.querySelector(".go").focus();
  const report = result?.report;
  at("numbers").replaceChildren(...(report ? costs(report, result.seconds, result.first) : []));
  at("summary").textContent = report?.summary ? `In the model's words: ${report.summary}` : (result?.problem ?? "");
  at("skipped").replaceChildren(...(report ? skippedUnits(report.skipped) : []));
  at("metrics").replaceChildren(...(report ? metrics(report.metrics) : []));
  at("findings-heading").textContent = shown?.findings.length ? `Findings (${shown.findings.length})` : "Findings";
}

/** The left-hand side, when there is more than one file. */
function showFiles() {
  at("files").hidden = files.length === 1;
  at("run").textContent = files.length === 1 ? "Analyse" : `Analyse ${files.length} files`;
  at("files").querySelector("ul").replaceChildren(
    ...files.map((file) =>
      element("li", {}, element(
        "button",
        { type: "button", "aria-current": file === current ? "true" : null, onclick: () => choosePath(file) },
        element("span", {}, file.path),
        file.result ? badge("", stateOf(file)) : null,
      )),
    ),
  );
}

function stateOf({ result, document: shown }) {
  if (result.running) return "…";
  return result.problem ? "not analysed" : String(shown.findings.length);
}

async function choosePath(file) {
  try {
    await open(file);
  } catch (error) {
    showFailure(new Failure(`${file.path} is not shown: ${error.message}.`));
    showFiles();
    return;
  }
  current = file;
  editor.show(file.document);
  refresh(file);
}

async function take(listed) {
  if (running || !listed.length) return;
  const { files: chosen, left } = choose(listed, suffixes);
  if (!chosen.length) {
    showFailure(new Failure(`None of these files is one this model reads (${suffixes.join(", ")}).`));
    return;
  }
  hideAlert();
  files.splice(0, files.length, ...chosen.map(({ path, file }) => ({ path, file, result: null })));
  await choosePath(files[0]);
  say(count(files.length, "file") + (left ? `; ${left} left out.` : "."));
}

function summaryOf({ result, document: shown }) {
  if (!result?.report) return "Stopped.";
  return `Done in ${result.seconds.toFixed(1)} s: ${inWords(shown.findings)}.`;
}

function summaryOfAll() {
  const done = files.filter((file) => file.result?.report);
  const failed = files.filter((file) => file.result?.problem);
  const found = done.flatMap((file) => file.document.findings);
  return `${count(done.length, "file")}: ${inWords(found)}.` + (failed.length ? ` ${failed.length} not analysed.` : "");
}

function say(text) {
  at("status").textContent = text;
}

function hideAlert() {
  at("alert").hidden = true;
}

function showFailure(error) {
  if (error.name === "AbortError") {
    say("Stopped.");
    return;
  }
  say("");
  if (error.wantsKey) {
    askForKey(error.message);
    return;
  }
  const place = error.line ? element(
    "button",
    { type: "button", onclick: () => editor.goToPlace(error.line, error.column ?? 1) },
    `Go to line ${error.line}`,
  ) : null;
  at("alert").hidden = false;
  at("alert").replaceChildren(...[error.message, place].filter(Boolean));
  if (!(error instanceof Failure)) console.error(error);
}

function askForKey(reason) {
  forgetKey();
  at("key-reason").textContent = `${reason} It is kept in this tab alone.`;
  at("key-input").value = "";
  at("key").returnValue = "";
  if (!at("key").open) at("key").showModal();
}

async function introduce() {
  try {
    const served = await get("v1/bundle");
    titles = new Map(served.rules.map((rule) => [rule.id, rule.title]));
    suffixes = SUFFIXES[served.language] ?? suffixes;
    const { name, revision, quantization, engine } = served.model;
    at("model").replaceChildren(badge(name, revision), badge("weights", quantization), badge("engine", engine));
    await showCard(at("card"), served);
    if (served.search) await showSearch(served.search);
  } catch (error) {
    showFailure(error);
  }
}

at("run").addEventListener("click", run);
at("stop").addEventListener("click", () => running?.abort());
for (const kind of ["file", "folder"]) {
  at(`open-${kind}`).addEventListener("click", () => at(kind).click());
  at(kind).addEventListener("change", async () => {
    await take(fromInput(at(kind)));
    at(kind).value = "";
  });
}
at("own-thresholds").addEventListener("change", () => {
  at("confidence").disabled = at("own-thresholds").checked;
});
at("confidence").addEventListener("input", () => {
  at("confidence-value").textContent = Number(at("confidence").value).toFixed(2);
});
at("key").addEventListener("close", () => {
  if (at("key").returnValue !== "ok") return;
  setKey(at("key-input").value.trim());
  at("key-input").value = "";
  hideAlert();
  introduce();
});
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    at("drop").hidden = false;
  });
}
addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) at("drop").hidden = true;
});
// Before the editor sees it, which would put the text of a dropped file at the cursor.
addEventListener("drop", async (event) => {
  at("drop").hidden = true;
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  event.stopPropagation();
  await take(await fromDrop(event.dataTransfer));
}, { capture: true });

setUpTabs();
setUpSearch({ onStart: hideAlert, onFailure: showFailure });
setUpTheme(at("theme"));
showFiles();
introduce();
