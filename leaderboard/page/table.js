"use strict";
// The table: headers sort it, checkboxes select rows, names open the drawer. Written by hand: a board has a few hundred rows, which a
// browser renders without help, while table libraries parse cells as markup and take half a megabyte.

/** Rows that are rendered at first; a button adds the others. Rendering thousands would delay the first view. */
const FIRST_ROWS = 200;
let allRows = false;

const partTitles = { "trade-off": "trade-off", ties: "tied with the best?", averaged: "shifts in the OOD average", aside: "other shifts", factors: "factors of the shifts", more: "more" };

function drawTable() {
  const columns = shownColumns(), rows = shownRows(), table = byId("table");
  table.tHead.replaceChildren(...headRows(columns));
  const best = Object.fromEntries(columns.map((column) => [column.key, bestOf(column, rows)]));
  const visible = allRows ? rows : rows.slice(0, FIRST_ROWS);
  table.tBodies[0].replaceChildren(...visible.map((row) => tableRow(row, columns, best)));
  const more = byId("all-rows");
  more.hidden = visible.length === rows.length;
  more.textContent = `Show all ${rows.length} rows`;
  byId("table-caption").textContent = `${board().title}. Accuracies in percent${spreadWords[state.spread] && `, ${spreadWords[state.spread]}`}. ` +
    "Only these rows are ranked with each other.";
  byId("notes").replaceChildren(...board().notes.map((note) => make("li", {}, ...marked(note))));
}

/** Two header rows: the parts of the table, then the columns. */
function headRows(columns) {
  const groups = [];
  for (const { part } of columns) if (groups.at(-1)?.[0] === part) groups.at(-1)[1] += 1; else groups.push([part, 1]);
  if (board().ties) groups.splice(groups[0]?.[0] === "trade-off" ? 1 : 0, 0, ["ties", 1]);
  const above = make("tr", { class: "parts" }, make("td", { colspan: 2 }),
    ...groups.map(([part, span]) => make("th", { colspan: span, scope: "colgroup", class: "part" }, partTitles[part])));
  return [above, make("tr", {},
    make("th", { scope: "col", class: "select" }, make("span", { class: "unseen" }, "selected")),
    sortable({ key: "method", title: "method" }, "name"),
    ...withTies(columns, columns.map((column, i) => sortable(column, `number${startsPart(columns, i)}`)),
      make("th", { scope: "col", class: "part", title: "simultaneous 95 % interval of the rank" }, "vs best, rank")))];
}

/** A note's text, with what is between backticks as code. */
const marked = (note) => note.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

const startsPart = (columns, i) => (i === 0 || columns[i].part !== columns[i - 1].part ? " part" : "");

/** The cells of a row, with that of the ties after the trade-off if ties were tested. */
function withTies(columns, cells, ties) {
  return board().ties ? cells.toSpliced(columns.filter((column) => column.part === "trade-off").length, 0, ties) : cells;
}

/** A header that sorts. `aria-sort` is about numbers: best first is descending where higher is better. */
function sortable(column, names) {
  const own = state.sort === column.key, falling = (column.better === "high") === (state.order === "best");
  return make("th", { scope: "col", class: names, "aria-sort": own ? (falling && column.key !== "method" ||
      column.key === "method" && state.order === "worst" ? "descending" : "ascending") : null },
    make("button", { type: "button", "data-sort": column.key, click: () => sortBy(column) }, column.title,
      make("span", { class: "arrow", "aria-hidden": "true" }, own ? (state.order === "best" ? "\u25be" : "\u25b4") : "")));
}

function sortBy(column) {
  state.order = state.sort === column.key && state.order === "best" ? "worst" : "best";
  state.sort = column.key;
  // The headers are made again, and the new one has to get the focus of the old one.
  changed("order");
  document.querySelector(`[data-sort="${CSS.escape(column.key)}"]`).focus();
}

/** The best value of a column, to be set in bold; null where a best one means nothing, as for costs and for a single row. */
function bestOf(column, rows) {
  const values = rows.filter((row) => row.kind === "measured").map((row) => row.cells[column.key]?.[0]).filter((v) => v != null);
  if (column.part === "more" || values.length < 2) return null;
  return values.reduce((a, b) => ((column.better === "high") === (a > b) ? a : b));
}

function tableRow(row, columns, best) {
  const chosen = chosenRows().includes(row.id);
  const element = make("tr", { "data-row": row.id, class: `${row.kind}${chosen ? " chosen-row" : ""}`,
      mouseenter: () => mark("hover", [row.id]), mouseleave: () => mark("hover", []),
      focusin: () => mark("hover", [row.id]), focusout: () => mark("hover", []) },
    make("td", { class: "select" }, make("label", {}, make("input", { type: "checkbox", checked: chosen, "aria-label": `select ${row.name}`,
      change: () => { toggleChosen(row.id); changed("rows"); } }))),
    make("th", { scope: "row", class: "name" }, make("div", {}, swatch(row), nameOf(row))),
    ...withTies(columns, columns.map((column, i) => {
      const bold = row.kind === "measured" && best[column.key] !== null && row.cells[column.key]?.[0] === best[column.key];
      return make("td", { class: `number${startsPart(columns, i)}${bold ? " top" : ""}` }, ...cellOf(row, column));
    }), make("td", { class: "tie part" }, tieOf(row))));
  return element;
}

/** The name as a button that opens the drawer, with the parameters in smaller letters below. */
function nameOf(row) {
  const [name, parameters] = nameParts(row.name);
  return make("span", {}, make("button", { type: "button", class: "link", click: () => { state.row = row.id; changed("drawer"); } }, name,
    parameters ? make("span", { class: "parameters" }, parameters) : null), badges(row));
}

function badges(row) {
  const titles = { reported: "a published number, not measured here", Pareto: "on the Pareto front: no other row has at least its ID and its OOD, and more of one",
    deterministic: "all seeds have the same scores on every split, so there is no spread over seeds",
    ASHA: "parameters selected in a search that ASHA cut short, which favours configurations that learn fast" };
  const own = [row.kind === "reported" && "reported", row.front && board().rows.length > 1 && "Pareto", row.deterministic && "deterministic", row.asha && "ASHA"].filter(Boolean);
  return make("span", {}, ...own.map((name) => make("span", { class: "badge", title: titles[name] }, name)));
}

function tieOf(row) {
  if (row.tie === null) return missing("not tested");
  const [low, high] = row.ranks ?? [];
  const rank = low === undefined ? "" : low === high ? `${low}` : `${low}\u2013${high}`;
  return make("span", {}, row.tie ? make("span", { class: `badge ${row.tie}` }, row.tie) : "", ` ${rank}`);
}

function cellOf(row, column) {
  const cell = row.cells[column.key], value = cell?.[0];
  if (value === null || value === undefined)
    return [missing(row.holes[column.key] || (row.kind === "reported" ? "not reported" : "not recorded"))];
  const pair = ends(cell), text = make("span", { class: "value" }, shown(value, column.kind)), gap = row.gaps?.[column.key];
  if (gap != null) return [text, make("span", { class: "spread", title: "measured here minus reported" }, `here ${signed(gap)}`)];
  if (!pair) return [text];
  const words = state.spread === "sd" ? `\u00b1\u2009${shown(cell[1], column.kind)}` : `[${pair.map((end) => shown(end, column.kind)).join(", ")}]`;
  return [text, make("span", { class: state.spread === "sd" ? "spread" : "spread interval" }, words)];
}

function hoverRow(id) {
  for (const row of byId("table").tBodies[0].rows) row.classList.toggle("hovered", row.dataset.row === id);
}

function drawUnfinished() {
  const runs = board()?.unfinished ?? [];
  byId("unfinished-section").hidden = !runs.length;
  byId("unfinished").replaceChildren(simpleTable("These runs are not in any table above.", ["method", "seed", "status", "error", "started", "fit"],
    runs.map((run) => [run.name, String(run.seed), run.status, run.error || " ", run.started, run.fit])));
}
