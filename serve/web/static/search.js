// Code search: a question in words, and the units of a project that fit it. Only where the server has an index.

import { get, post } from "./api.js";
import { badge, count, element } from "./dom.js";

const PARTS = { embedding: "by meaning", bm25: "by words" };
const at = (id) => document.getElementById(id);
let asked = 0;

/** Make the form work; `onStart` is called before each search, `onFailure` with what went wrong. */
export function setUpSearch({ onStart, onFailure }) {
  at("search-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    onStart();
    try {
      await search();
    } catch (error) {
      say("");
      onFailure(error);
    }
  });
  at("tab-search").addEventListener("click", () => listProjects().catch(onFailure));
}

/** Show the tab. `model` is what embeds code and queries. */
export async function showSearch(model) {
  at("tab-search").hidden = false;
  at("tab-search").title = `${model.name} ${model.revision}`;
  if (location.hash === "#search") at("tab-search").click();
}

async function listProjects() {
  const projects = await get("v1/index");
  const chosen = at("project").value;
  at("project").replaceChildren(
    ...projects.map(({ project, units }) =>
      element("option", { value: project, selected: project === chosen }, `${project} (${count(units, "unit")})`)),
  );
  if (!projects.length) say("Nothing is indexed yet: deepcode-check index PATH… --url of this server.");
}

async function search() {
  const query = at("query").value;
  if (!query.trim()) return;
  if (!at("project").value) await listProjects(); // not there yet, or nothing was indexed when they were listed
  if (!at("project").value) return;
  const request = { query, project: at("project").value };
  if (at("search-path").value) request.path = at("search-path").value;
  if (at("kind").value) request.kinds = [at("kind").value];
  const number = ++asked;
  say("Searching…");
  const began = performance.now();
  const { results } = await post("v1/search", request);
  if (number !== asked) return; // a later question was asked meanwhile
  const seconds = (performance.now() - began) / 1000;
  at("found").replaceChildren(...results.map(card));
  say(results.length ? `${count(results.length, "result")} in ${seconds.toFixed(2)} s.` : "Nothing was found.");
}

function card({ path, start_line: first, end_line: last, kind, name, snippet, found_by: ranks, copies }) {
  return element(
    "li",
    {},
    element("h2", {}, element("code", {}, name), element("span", { class: "about" }, `${kind} · ${path}, lines ${first} to ${last}`)),
    element("pre", { class: "snippet", tabindex: "0", "aria-label": `The code of ${name}` }, snippet),
    element("p", { class: "badges" }, Object.entries(ranks).map(([part, rank]) =>
      badge(PARTS[part] ?? part, `#${rank}`, "its rank in this part of the search"))),
    copies.length
      ? element("p", { class: "about" }, `The same: ${copies.map((copy) => `${copy.path}, line ${copy.start_line}`).join("; ")}`)
      : null,
  );
}

function say(text) {
  at("search-status").textContent = text;
}
