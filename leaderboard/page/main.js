"use strict";
// The controls, and the update after a change: first the state, then the URL, then what depends on it.

/** Update the page after a change of the state. `what` is `rows` (the selection), `order`, `drawer`, `theme` or `all`; only what it
 *  affects is rendered, since figures are slow. */
function changed(what) {
  settleHeight();
  const recoloured = settleLooks();
  writeFragment();
  if (what === "drawer") { drawDrawer(); return Promise.resolve(); }
  if (what !== "theme") drawControls();
  if (board()) drawTable();
  drawComparison();
  drawChosen();
  announce(what);
  if (what === "order" && chosenRows().length) return Promise.resolve();
  if (what === "order") return Promise.all([drawBars(), drawReliability()]);
  if (what === "rows") return Promise.all([crowded() || recoloured ? drawScatter() : mark("chosen", chosenRows()), drawBars(), drawReliability()]);
  return drawAll();
}

/** Describe the table in the status line, which screen readers announce. */
function announce(what) {
  if (!board()) { byId("status").textContent = "There are no results yet."; return; }
  const number = shownRows().length, all = rowsOfKind().length;
  const column = board().columns.find((c) => c.key === state.sort)?.title ?? "method";
  const words = [`${number === all ? all : `${number} of ${all}`} ${all === 1 ? "row" : "rows"}`,
    `sorted by ${column}, ${column === "method" ? (state.order === "best" ? "A to Z" : "Z to A") : `${state.order} first`}`];
  const ids = chosenRows().length;
  if (ids) words.push(`${ids} selected`);
  if (what === "rows" && ids === 2) words.push("compared below");
  byId("status").textContent = words.join(", ");
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
}

function drawControls() {
  options(byId("suite"), [...new Set(leaderboard.boards.map((b) => b.suite))].map((s) => [s, s]), state.suite);
  options(byId("backbone"), backbonesOf(state.suite).map((b) => [b, b]), state.backbone);
  options(byId("group"), groups().map((b, i) => [i, i ? `${b.kind} ${i}: ${b.rows.length} rows` : `ranked: ${b.rows.length} rows`]), state.group);
  byId("group-label").hidden = groups().length < 2;
  options(byId("methods"), [...new Set((board()?.rows ?? []).map((row) => row.method))].map((m) => [m, m]), "");
  if (byId("find").value !== state.find) byId("find").value = state.find;
  byId("show-label").hidden = !hasReported();
  byId("show").value = state.show;
  byId("spread").value = state.spread;
  options(byId("y"), heights().map((column) => [column.key, heightName(column)]), state.y);
  byId("axes").value = state.axes;
  for (const name of ["suite", "backbone"]) byId(name).parentElement.hidden = byId(name).options.length < 2;
  const checked = board() ? new Set(shownColumns().map((c) => c.key)) : new Set();
  byId("columns").replaceChildren(byId("columns").firstElementChild, ...(board()?.columns ?? []).map((column) => make("label", {},
    make("input", { type: "checkbox", checked: checked.has(column.key), change: (event) => chooseColumn(column.key, event.target.checked) }), column.title)));
  const apart = board()?.kind === "apart" || board()?.kind === "limited";
  byId("apart").hidden = !apart;
  byId("apart").textContent = apart ? `These rows are not ranked with the others. ${board().title}.` : "";
  byId("figures").hidden = !Object.keys(board()?.figures ?? {}).length;
  for (const name of ["table-scroll", "comparison"]) byId(name).hidden = !board()?.rows.length;
  const runs = leaderboard.boards.reduce((sum, b) => sum + b.rows.reduce((own, row) => own + row.runs.length, 0), 0);
  byId("title").textContent = board() ? `${board().suite} on ${board().backbone}` : "Leaderboard";
  byId("about").textContent = board()?.averaged.length ? `OOD: mean over ${board().averaged.join(", ")}.` +
    (board().summary.length && board().ties ? " Ties: all pairs of rows are tested at the same time, with a family-wise error of 5 %." : "") : "";
  byId("summary").hidden = !board()?.summary.length;
  byId("summary").replaceChildren(...(board()?.summary ?? []).map((part) => (typeof part === "string" ? part : rowLink(part.row))));
  byId("made").textContent = `ShiftBench ${leaderboard.version}, ${leaderboard.made.slice(0, 16).replace("T", " ")} UTC, ${runs} runs.`;
}

/** A row's name in a sentence, which opens the drawer. Not a <button>: its text would not wrap with the line. */
function rowLink(id) {
  const row = rowById(id), [name, parameters] = nameParts(row.name);
  const open = () => { state.row = id; changed("drawer"); };
  const key = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } };
  return make("span", { role: "button", tabindex: "0", class: "link", click: open, keydown: key }, swatch(row), name,
    parameters ? make("span", { class: "parameters" }, parameters) : null);
}

function chooseColumn(key, wanted) {
  const keys = shownColumns().map((c) => c.key).filter((other) => other !== key);
  state.columns = (wanted ? [...keys, key] : keys).join(",") || "id";
  // The checkboxes are made again, and the new one has to get the focus of the old one.
  const focus = [...byId("columns").querySelectorAll("input")].findIndex((input) => input === document.activeElement);
  changed("all");
  byId("columns").querySelectorAll("input")[focus]?.focus();
}

function drawChosen() {
  const rows = chosenRows().map(rowById);
  byId("chosen").hidden = !rows.length;
  byId("chosen-names").textContent = rows.length === 1 ? `${rows[0].name}: select a second row to compare` : `${rows.length} rows selected`;
  byId("compare").disabled = rows.length !== 2;
}

function applyTheme() {
  document.documentElement.dataset.theme = darkNow() ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", String(darkNow()));
}

/** Go to another board. Rows, columns and the vertical axis are those of one board, and are reset. */
function moveTo(change) {
  Object.assign(state, change, { rows: "", row: "", columns: "", y: "ood" });
  state.sort = board()?.sort ?? "";
  state.order = "best";
  allRows = false;
  return changed("all");
}

function listen() {
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("suite").addEventListener("change", (e) => moveTo({ suite: e.target.value, backbone: backbonesOf(e.target.value)[0], group: 0 }));
  byId("backbone").addEventListener("change", (e) => moveTo({ backbone: e.target.value, group: 0 }));
  byId("group").addEventListener("change", (e) => moveTo({ group: Number(e.target.value) }));
  byId("find").addEventListener("input", (e) => { state.find = e.target.value; changed("all"); });
  for (const key of ["show", "spread", "y", "axes"]) byId(key).addEventListener("change", (e) => { state[key] = e.target.value; changed("all"); });
  byId("theme").addEventListener("click", () => { state.theme = darkNow() ? "light" : "dark"; applyTheme(); changed("theme"); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { applyTheme(); changed("theme"); });
  byId("all-rows").addEventListener("click", () => { allRows = true; drawTable(); byId("table-scroll").focus(); });
  byId("clear").addEventListener("click", () => { state.rows = ""; changed("rows"); byId("table-scroll").focus(); });
  byId("compare").addEventListener("click", () => { byId("comparison").scrollIntoView(); byId("comparison").focus({ preventScroll: true }); });
  byId("drawer-close").addEventListener("click", () => byId("drawer").close());
  byId("drawer").addEventListener("click", (event) => { if (event.target === byId("drawer")) byId("drawer").close(); });
  byId("drawer").addEventListener("close", () => {
    state.row = "";
    writeFragment();
    if (opener?.isConnected) opener.focus();
  });
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("table-scroll").focus(); });
  addEventListener("hashchange", () => { readFragment(); start(); });
  // Figures fit the width. Phones change the height alone while scrolling, which needs no update.
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawScatter(); drawReliability(); } });
}

function start() {
  applyTheme();
  const rendered = changed("all");
  drawUnfinished();
  drawDrawer();
  // Tests wait for this mark.
  return rendered.then(() => { document.documentElement.dataset.ready = "yes"; });
}

readFragment();
listen();
start();
