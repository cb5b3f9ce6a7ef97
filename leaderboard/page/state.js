"use strict";
// The state of the view, which is also in the URL's fragment, so that a view can be linked. A fragment can contain anything: every
// value is checked before it is used.

const leaderboard = JSON.parse(byId("document").textContent);

const usual = { suite: "", backbone: "", group: 0, sort: "", order: "best", find: "", show: "measured", spread: "sd",
                y: "ood", axes: "linear", columns: "", rows: "", row: "", theme: "" };
const state = { ...usual };

/** Set the state from the URL. What is not there, or not valid, gets its default. Order matters: a row is of a board, a board of a
 *  suite and backbone. */
function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(usual)) state[key] = given.get(key) ?? usual[key];
  const suites = leaderboard.boards.map((board) => board.suite);
  if (!suites.includes(state.suite)) state.suite = (leaderboard.boards.find((b) => b.kind === "ranked") ?? leaderboard.boards[0])?.suite ?? "";
  if (!backbonesOf(state.suite).includes(state.backbone)) state.backbone = backbonesOf(state.suite)[0] ?? "";
  state.group = Math.min(Math.max(Number.parseInt(state.group, 10) || 0, 0), Math.max(groups().length - 1, 0));
  if (!board()?.columns.some((column) => column.key === state.sort) && state.sort !== "method") state.sort = board()?.sort ?? "";
  if (state.order !== "worst") state.order = "best";
  if (!["measured", "reported", "both"].includes(state.show)) state.show = "measured";
  if (!["sd", "seeds", "images", "none"].includes(state.spread)) state.spread = "sd";
  if (state.axes !== "logit") state.axes = "linear";
  if (!["light", "dark"].includes(state.theme)) state.theme = "";
  state.rows = state.rows.split(",").filter((id) => rowById(id)).join(",");
  if (!rowById(state.row)) state.row = "";
}

/** Write the state to the URL without what has its default, in place of the last entry of the history. */
function writeFragment() {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (String(value) !== String(usual[key])) parts.set(key, value);
  history.replaceState(null, "", `#${parts}`);
}

/** Backbones of a suite; those that were measured come first. */
const backbonesOf = (suite) => [...new Set(leaderboard.boards.filter((b) => b.suite === suite)
  .sort((a, b) => (b.kind === "ranked") - (a.kind === "ranked")).map((b) => b.backbone))];
const groups = () => leaderboard.boards.filter((b) => b.suite === state.suite && b.backbone === state.backbone);
const board = () => groups()[state.group];
const rowById = (id) => board()?.rows[placeOf(id)];
const chosenRows = () => (state.rows ? state.rows.split(",") : []);
const hasReported = () => board()?.kind === "ranked" && board().rows.some((row) => row.kind === "reported");

const rowsOfKind = () => board().rows.filter((row) => !hasReported() || state.show === "both" || row.kind === state.show);

function toggleChosen(id) {
  const ids = chosenRows();
  state.rows = (ids.includes(id) ? ids.filter((other) => other !== id) : [...ids, id]).join(",");
}

/** Split a row's name into method and parameters, which are in brackets after a space. */
function nameParts(name) {
  return name.match(/^(.*?)( [([].*)?$/s).slice(1);
}

/** The shown columns: the selected ones, or else those that are shown by default. */
function shownColumns() {
  const requested = state.columns.split(",");
  const columns = board().columns.filter((c) => (state.columns ? requested.includes(c.key) : c.shown));
  const order = ["trade-off", "averaged", "aside", "factors", "more"];
  return order.flatMap((part) => columns.filter((column) => column.part === part));
}

/** The rows that match the filters, sorted; a missing value is last in either direction, and ties are sorted by name. */
function shownRows() {
  const words = state.find.trim().toLowerCase();
  const matching = rowsOfKind().filter((row) => !words || row.name.toLowerCase().includes(words));
  const column = board().columns.find((c) => c.key === state.sort);
  const sign = (column?.better === "high" ? -1 : 1) * (state.order === "worst" ? -1 : 1);
  const names = new Intl.Collator("en", { numeric: true });
  return matching.sort((a, b) => {
    if (!column) return (state.order === "worst" ? -1 : 1) * names.compare(a.name, b.name);
    const [x, y] = [a, b].map((row) => row.cells[column.key]?.[0] ?? null);
    if (x === null || y === null) return (x === null) - (y === null) || names.compare(a.name, b.name);
    return sign * (x - y) || names.compare(a.name, b.name);
  });
}

/** Ends of the selected uncertainty, or null. A cell is [value, SD, seeds low, high, images low, high], cut after its last number. */
function ends(cell) {
  if (!cell || cell[0] === null || cell[0] === undefined) return null;
  const pair = { sd: cell[1] == null ? [] : [cell[0] - cell[1], cell[0] + cell[1]], seeds: cell.slice(2, 4),
                 images: cell.slice(4, 6), none: [] }[state.spread];
  return pair.length === 2 && pair[0] !== null && pair[1] !== null ? pair : null;
}
const spreadWords = { sd: "\u00b1 sample SD over seeds", seeds: "95 % interval over seeds (t)",
                      images: "95 % interval over test images (Wilson)", none: "" };
