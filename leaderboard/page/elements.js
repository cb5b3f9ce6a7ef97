"use strict";
// Elements made from data, and numbers as people read them. Text becomes text nodes only: no data is ever parsed as markup.

const byId = (id) => document.getElementById(id);

/** An element with attributes (a function is a listener, false and null leave out) and children (elements or text). */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A table with row headers: `columns` are titles, `rows` arrays of text or elements. */
function simpleTable(caption, columns, rows, numeric = () => false) {
  const side = (i) => (numeric(i) ? "number" : null);
  return make("table", { class: "plain" },
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...columns.map((title, i) => make("th", { scope: "col", class: side(i) }, title)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell, i) =>
      i === 0 ? make("th", { scope: "row" }, cell) : make("td", { class: side(i) }, cell ?? hole("not recorded")))))));
}

/** What a missing number looks like; the reason is a tooltip, and text for those who listen. */
function hole(reason) {
  return make("span", { class: "hole", title: reason }, "\u2013", make("span", { class: "unseen" }, ` missing: ${reason}`));
}

/** A share in percent; what rounds to zero has no sign. */
const percent = (share, digits = 1) => (100 * share).toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "\u2212");
const signed = (share) => (/[1-9]/.test(percent(share)) && share > 0 ? "+" : "") + percent(share);
const pValue = (p) => (p === null ? "" : p < 0.001 ? "<0.001" : p.toFixed(3));

function seconds(value) {
  if (value < 90) return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} s`;
  return value < 5400 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** A number of a column's kind. */
function shown(value, kind) {
  if (kind === "percent") return percent(value);
  if (kind === "seconds") return seconds(value);
  if (kind === "bytes") return `${(value / 2 ** 30).toFixed(2)} GiB`;
  if (kind === "count") return String(value);
  return value.toFixed(3);
}
