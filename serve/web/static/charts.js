// Bar charts as SVG. Every number in them stands in a table on the same page, so that none is only a picture.

import { drawing } from "./dom.js";

const WIDTH = 640;
const NAMES = 190;
const VALUES = 80;
const BAR = 16;
const GAP = 12;

/**
 * One bar for each of `rows`: `{ name, value, low, high, text }`; `low` and `high` are an interval, when there is one.
 * `logarithmic` is for sizes that lie orders of magnitude apart.
 */
export function bars(title, rows, { most = null, logarithmic = false } = {}) {
  const values = rows.map((row) => row.value);
  const largest = most ?? Math.max(...values, Number.MIN_VALUE);
  const smallest = Math.min(...values.filter((value) => value > 0)) / 2;
  const room = WIDTH - NAMES - VALUES;
  const scale = (value) => {
    if (!logarithmic) return (room * Math.min(value, largest)) / largest;
    return value > 0 ? (room * Math.log(value / smallest)) / Math.log(largest / smallest) : 0;
  };
  const height = rows.length * (BAR + GAP) + GAP;
  const drawn = rows.flatMap((row, index) => {
    const y = GAP + index * (BAR + GAP);
    const middle = y + BAR / 2;
    const interval = row.low === undefined ? [] : [
      drawing("path", {
        class: "interval",
        d: `M${NAMES + scale(row.low)} ${middle}H${NAMES + scale(row.high)}`
          + `M${NAMES + scale(row.low)} ${middle - 4}v8M${NAMES + scale(row.high)} ${middle - 4}v8`,
      }),
    ];
    return [
      drawing("text", { class: "name", x: NAMES - 10, y: middle, "text-anchor": "end" }, row.name),
      drawing("rect", { class: `bar bar-${index % 2}`, x: NAMES, y, width: Math.max(scale(row.value), 1), height: BAR, rx: 3 }),
      ...interval,
      drawing("text", { class: "value", x: WIDTH, y: middle, "text-anchor": "end" }, row.text),
    ];
  });
  const label = `${title}: ${rows.map((row) => `${row.name} ${row.text}`).join(", ")}`;
  return drawing("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, drawn);
}
