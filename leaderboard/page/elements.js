"use strict";
// Helpers that make elements and format numbers. Text becomes text nodes only: names come from packs of
// strangers, and must never be parsed as markup.

const byId = (id) => document.getElementById(id);

/** Make an element. An attribute that is a function becomes a listener; false and null are left out. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make a table whose first cells are row headers. `rows` are arrays of text or elements; `numeric` says which columns align right. */
function simpleTable(caption, columns, rows, numeric = () => false) {
  const side = (i) => (numeric(i) ? "number" : null);
  return make("table", { class: "plain" },
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...columns.map((title, i) => make("th", { scope: "col", class: side(i) }, title)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell, i) =>
      i === 0 ? make("th", { scope: "row" }, cell) : make("td", { class: side(i) }, cell ?? missing("not recorded")))))));
}

/** Make the dash of a missing value. Its reason is a tooltip, and hidden text for screen readers. */
function missing(reason) {
  return make("span", { class: "missing", title: reason }, "\u2013", make("span", { class: "unseen" }, ` missing: ${reason}`));
}

/** Format a share in percent. "-0.0" becomes "0.0", and a hyphen a minus sign. */
const percent = (share, digits = 1) => (100 * share).toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "\u2212");
const signed = (share) => (/[1-9]/.test(percent(share)) && share > 0 ? "+" : "") + percent(share);
const pValue = (p) => (p === null ? "" : p < 0.001 ? "<0.001" : p.toFixed(3));

function seconds(value) {
  if (value < 90) return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} s`;
  return value < 5400 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** Format a number by its column's kind. */
function shown(value, kind) {
  if (kind === "percent") return percent(value);
  if (kind === "seconds") return seconds(value);
  if (kind === "bytes") return `${(value / 2 ** 30).toFixed(2)} GiB`;
  if (kind === "count") return String(value);
  return value.toFixed(3);
}
