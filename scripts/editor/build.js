// Writes serve/web/static/vendor/codemirror.js, and beside it the licence of every package in it.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "..", "serve", "web", "static", "vendor");

const result = await build({
  absWorkingDir: here,
  entryPoints: ["codemirror.js"],
  outfile: join(target, "codemirror.js"),
  bundle: true,
  format: "esm",
  minify: true,
  target: "es2022",
  metafile: true,
  legalComments: "none",
});

const packages = new Set();
for (const file of Object.keys(result.metafile.inputs)) {
  const found = file.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (found) packages.add(found[1]);
}
const licences = [...packages].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, "LICENSE"), "utf8").trim()}\n`;
});
writeFileSync(join(target, "codemirror.LICENSE.txt"), licences.join(`\n${"-".repeat(72)}\n\n`));
