// Files from the person's own disk: chosen, or dropped, one or a folder of them. They leave it only to be analysed.

const MOST_FILES = 500;
const PASSED_OVER = /(^|\/)(\.[^/]+|__pycache__|node_modules|venv)(\/|$)/;

/** What can be analysed of these files: `{ path, file }` sorted by path, and how many were left out. */
export function choose(listed, suffixes) {
  const single = listed.length === 1;
  const fitting = listed.filter(
    ({ path }) => single || (suffixes.some((suffix) => path.endsWith(suffix)) && !PASSED_OVER.test(path)),
  );
  fitting.sort((one, other) => (one.path < other.path ? -1 : 1));
  return { files: fitting.slice(0, MOST_FILES), left: listed.length - Math.min(fitting.length, MOST_FILES) };
}

/** The files of an `<input type=file>`. */
export function fromInput(input) {
  return [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/** The files of a drop, those in folders too. */
export async function fromDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ path: file.name, file }));
  return (await Promise.all(entries.map((entry) => walk(entry, "")))).flat();
}

async function walk(entry, above) {
  const path = above + entry.name;
  if (entry.isFile) return [{ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  if (PASSED_OVER.test(path)) return [];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader gives a part at a time, and an empty one at the end.
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return found;
    for (const each of part) found.push(...(await walk(each, `${path}/`)));
  }
}

/** A file's text; an Error says why it has none. */
export async function readText(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error("not UTF-8 text, or it can no longer be read");
  }
  if (text.includes("\0")) throw new Error("not text: it holds NUL characters");
  return text;
}
