"use strict";
// The figures: Vega-Lite specifications of the board, filled with the rows that are shown, in the colours of the theme.

const views = {};
const darkNow = () => (state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

function inTheme(part) {
  if (typeof part === "string") return (darkNow() && leaderboard.recolour[part]) || part;
  if (Array.isArray(part)) return part.map(inTheme);
  if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([k, v]) => [k, inTheme(v)]));
  return part;
}

/** Draw one figure anew. `ast` makes Vega interpret its expressions, so that the page needs no `unsafe-eval`. */
async function draw(name, datasets, change = (specification) => specification) {
  views[name]?.finalize();
  delete views[name];
  const specification = board()?.figures[name];
  byId(name).replaceChildren();
  if (!specification) return null;
  const filled = { ...change(inTheme(specification)), datasets };
  const made = await vegaEmbed(byId(name), filled, { ast: true, renderer: "svg", actions: false, mode: "vega-lite",
                                                     tooltip: { theme: darkNow() ? "dark" : "light" } });
  views[name] = made;
  return made.view;
}

/** Colour and mark of a row, as the figures have them. */
function styleOf(row) {
  const order = board().rows.indexOf(row);
  const colours = leaderboard.colours, marks = ["\u25cf", "\u25a0", "\u25b2", "\u25c6", "\u271a", "\u25bc", "\u25b6"];
  return { colour: inTheme(colours[order % colours.length]), mark: marks[order % marks.length] };
}

function points(rows) {
  return rows.filter((row) => row.cells.id?.[0] != null && row.cells.ood?.[0] != null).map((row) => {
    const [id, ood] = [row.cells.id[0], row.cells.ood[0]];
    const [across, up] = [ends(row.cells.id), ends(row.cells.ood)];
    return { key: row.id, row: row.name, id, ood, kind: row.kind, front: row.front === true, seeds: row.runs.length || null,
             x_id: id, y_ood: ood, id_low: across?.[0] ?? null, id_high: across?.[1] ?? null, ood_low: up?.[0] ?? null,
             ood_high: up?.[1] ?? null, x_id_low: across?.[0] ?? null, x_id_high: across?.[1] ?? null,
             y_ood_low: up?.[0] ?? null, y_ood_high: up?.[1] ?? null };
  });
}

async function drawScatter() {
  const rows = shownRows(), ids = new Set(rows.map((row) => row.id));
  const curve = (board()?.curves ?? []).filter((p) => ids.has(p.row)).map((p) => ({ ...p, x: p.id, y: p.ood }));
  const view = await draw("scatter", { points: points(rows), curve });
  const parts = [spreadWords[state.spread] && `Bars: ${spreadWords[state.spread]}.`,
    rows.filter((row) => row.front).length > 1 && "Dotted: Pareto front.",
    curve.length > 0 && "Grey: interpolation from the start (alpha 0) to the fine-tuned weights.",
    rows.some((row) => row.kind === "reported") && "Hollow: reported, not measured.",
    "A click selects a row. The table has the same numbers."];
  byId("scatter-caption").textContent = parts.filter(Boolean).join(" ");
  if (!view) return;
  await mark("chosen", chosenRows());
  view.addSignalListener("hover", (_, value) => hoverRow(value.key?.[0] ?? ""));
  view.addSignalListener("chosen", (_, value) => {
    const ids = (value.key ?? []).join(",");
    if (ids !== state.rows) { state.rows = ids; changed("rows"); }
  });
}

/** Set one of the scatter's selections to these rows. */
async function mark(selection, ids) {
  const view = views.scatter?.view;
  if (!view) return;
  const fields = [{ type: "E", field: "key" }];
  await view.data(`${selection}_store`, ids.map((id) => ({ unit: "", fields, values: [id] }))).runAsync();
}

/** Rows of the smaller figures: the selected ones, else the first of the table. */
function detailedRows(most, fits) {
  const chosen = chosenRows().map(rowById).filter(fits);
  return (chosen.length ? chosen : shownRows().filter(fits)).slice(0, most);
}
const whose = () => (chosenRows().length ? "The selected rows, three at most. " : "The first rows; select others in the table. ");

async function drawBars() {
  const splits = board()?.columns.filter((c) => c.split && c.part !== "more") ?? [];
  const rows = detailedRows(3, (row) => splits.some((c) => row.cells[c.key]?.[0] != null));
  const bars = splits.flatMap((column) => rows.map((row) => {
    const cell = row.cells[column.key], pair = ends(cell);
    return { key: row.id, row: row.name, split: column.title, score: cell?.[0] ?? null, low: pair?.[0] ?? null, high: pair?.[1] ?? null };
  }));
  byId("bars-figure").hidden = !bars.length;
  const step = Math.max(7, Math.min(16, 400 / Math.max(splits.length * (rows.length + 1), 1)));
  await draw("bars", { bars }, (specification) => ({ ...specification, height: splits.length * step * (rows.length + 0.8) }));
  byId("bars-caption").replaceChildren(legend(rows), whose(),
    spreadWords[state.spread] ? `Lines: ${spreadWords[state.spread]}.` : "");
}

/** Names behind their colours, as text. */
function legend(rows) {
  return make("span", { class: "legend" }, ...rows.map((row) => make("span", {}, swatch(row), row.name)));
}

function swatch(row) {
  const { colour, mark: shape } = styleOf(row);
  const element = make("span", { class: "swatch", "aria-hidden": "true" }, shape);
  element.style.color = colour;
  return element;
}

async function drawReliability() {
  const available = Boolean(board()?.figures.reliability);
  byId("reliability-section").hidden = !available;
  if (!available) return draw("reliability", {});
  const rows = detailedRows(3, (row) => Object.keys(row.bins ?? {}).length > 0);
  const splits = ["id-test", ...board().shifts];
  const bins = splits.flatMap((split) => rows.flatMap((row) => {
    const own = row.bins[split] ?? [], images = own.reduce((sum, bin) => sum + bin[2], 0);
    return own.map(([confidence, accuracy, count]) => ({ panel: split, row: row.name, confidence, accuracy, images: count, share: count / images }));
  }));
  const side = 168, columns = Math.max(1, Math.floor(byId("reliability").clientWidth / (side + 72)));
  const order = splits.filter((split) => bins.some((bin) => bin.panel === split));
  await draw("reliability", { bins }, (specification) => ({ ...specification, columns,
    facet: { ...specification.facet, sort: order }, spec: { ...specification.spec, width: side, height: side } }));
  byId("reliability-caption").replaceChildren(legend(rows), whose(), "Accuracy against confidence in 15 bins of equal width, seeds pooled; " +
    "a mark's area is the share of images. On the diagonal, confidence is right; below it, too high.");
}

async function drawAll() {
  await Promise.all([drawScatter(), drawBars(), drawReliability()]);
}
