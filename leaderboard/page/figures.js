"use strict";
// The figures: the board's Vega-Lite specifications, filled with rows, in the colours of the theme. scatter.js has the largest one.

const views = {};
/** With more marks than this, a figure is a canvas: an SVG element per mark makes the page slow. */
const MOST_IN_SVG = 1000;
const darkNow = () => (state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

/** A specification with its light colours replaced by those of the theme. */
function inTheme(part) {
  if (typeof part === "string") return (darkNow() && leaderboard.recolour[part]) || part;
  if (Array.isArray(part)) return part.map(inTheme);
  if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([k, v]) => [k, inTheme(v)]));
  return part;
}

/** Remove a figure. A view that is not finalized keeps its listeners and its data. */
function clear(name) {
  views[name]?.finalize();
  delete views[name];
  byId(name).replaceChildren();
}

/** Render a figure. `ast` makes Vega interpret its expressions, so that the page's policy needs no `unsafe-eval`. */
async function draw(name, datasets, change = (specification) => specification) {
  clear(name);
  const specification = board()?.figures[name];
  if (!specification) return null;
  const filled = { ...change(inTheme(specification)), datasets };
  const many = Object.values(datasets).some((rows) => rows.length > MOST_IN_SVG);
  const made = await vegaEmbed(byId(name), filled, { ast: true, renderer: many ? "canvas" : "svg", actions: false, mode: "vega-lite",
                                                     tooltip: { theme: darkNow() ? "dark" : "light" } });
  views[name] = made;
  return made.view;
}

const glyphs = { full: ["\u25cf", "\u25a0", "\u25b2", "\u25c6", "\u271a", "\u25bc", "\u25b6", "\u25c0"],
                 hollow: ["\u25cb", "\u25a1", "\u25b3", "\u25c7", "\u271b", "\u25bd", "\u25b7", "\u25c1"] };

/** Index of a row in its board. Cached per board, since every row is looked up several times per update. */
function placeOf(id) {
  const own = board();
  own.places ??= new Map(own.rows.map((row, i) => [row.id, i]));
  return own.places.get(id);
}

/** Id of the row whose look a row has: a reported row has that of the measured row with its recipe. */
const lookOf = (row) => row.measured ?? row.id;
let ownLooks = new Map();

/** Assign looks to the selected rows or, if none is selected, to the shown rows.
 *
 *  As many rows as there are colours get a colour and a shape each. With more rows, all have those of the document, where a method
 *  has one colour. A row keeps its colour if it is free, independent of the order of selection, so that it does not change under the
 *  reader's eyes; otherwise it gets one that no row of the board has, before one that another row has.
 *
 *  Returns whether any look has changed. */
function settleLooks() {
  const before = JSON.stringify([...ownLooks]), most = leaderboard.colours.length;
  ownLooks = new Map();
  const rows = board() ? (chosenRows().length ? chosenRows().map(rowById) : shownRows()) : [];
  const ids = [...new Set(rows.map(lookOf))].sort((a, b) => placeOf(a) - placeOf(b));
  if (ids.length > most) return before !== "[]";
  const looks = ids.map(() => []);
  for (const part of [0, 1]) {
    const used = new Set(), assigned = new Set(board()?.rows.map((row) => row.look[part]));
    ids.forEach((id, i) => { const at = rowById(id).look[part]; if (!used.has(at)) { looks[i][part] = at; used.add(at); } });
    const free = [...Array(most).keys()].filter((at) => !used.has(at)).sort((a, b) => assigned.has(a) - assigned.has(b) || a - b);
    for (const look of looks) look[part] ??= free.shift();
  }
  ids.forEach((id, i) => ownLooks.set(id, looks[i]));
  return before !== JSON.stringify([...ownLooks]);
}

/** Colour and shape of a row, the same in all figures. */
function styleOf(row) {
  const [colour, shape] = ownLooks.get(lookOf(row)) ?? row.look, { colours, shapes } = leaderboard;
  return { colour: inTheme(colours[colour]), shape: shapes[shape], glyph: glyphs[row.kind === "reported" ? "hollow" : "full"][shape] };
}

/** Rows of the smaller figures: the selected or else the first ones, and the first of those that share a colour. */
function detailedRows(most, fits) {
  const chosen = chosenRows().map(rowById).filter(fits), first = new Map();
  const rows = chosen.length ? chosen : shownRows().filter(fits);
  for (const row of rows) if (!first.has(styleOf(row).colour)) first.set(styleOf(row).colour, lookOf(row));
  return rows.filter((row) => first.get(styleOf(row).colour) === lookOf(row)).slice(0, most);
}
const whose = () => (chosenRows().length ? "The selected rows, at most three. " : "The first rows, one per colour; select others in the table. ");

async function drawBars() {
  const splits = board()?.columns.filter((c) => c.split && c.kind === "percent" && c.part !== "more") ?? [];
  const rows = detailedRows(3, (row) => (row.kind === "measured" || state.show === "reported" || chosenRows().length) &&
    splits.some((c) => row.cells[c.key]?.[0] != null));
  const bars = splits.flatMap((column) => rows.map((row) => {
    const cell = row.cells[column.key], pair = ends(cell);
    return { key: row.id, row: row.name, colour: styleOf(row).colour, split: column.title, score: cell?.[0] ?? null, low: pair?.[0] ?? null, high: pair?.[1] ?? null };
  }));
  byId("bars-figure").hidden = !bars.length;
  // Bars get thinner with more of them, down to a limit; then the figure grows.
  const step = Math.max(7, Math.min(16, leaderboard.scatter.height / Math.max(splits.length * (rows.length + 0.8), 1)));
  await draw("bars", { bars }, (specification) => ({ ...specification, height: splits.length * step * (rows.length + 0.8) }));
  byId("bars-caption").replaceChildren(legend(rows), whose(),
    spreadWords[state.spread] ? `Lines: ${spreadWords[state.spread]}.` : "");
}

/** A legend as text, which wraps and can be read aloud, unlike Vega's. */
function legend(rows) {
  return make("span", { class: "legend" }, ...rows.map((row) => make("span", {}, swatch(row), row.name)));
}

function swatch(row) {
  const { colour, glyph } = styleOf(row);
  const element = make("span", { class: "swatch", "aria-hidden": "true" }, glyph);
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
    const own = row.bins[split] ?? [], images = own.reduce((sum, bin) => sum + bin[2], 0), { colour, shape } = styleOf(row);
    return own.map(([confidence, accuracy, count]) => ({ panel: split, key: row.id, row: row.name, colour, shape, confidence, accuracy, images: count, share: count / images }));
  }));
  // Panels have a fixed size in Vega-Lite, so that their number per line has to be computed here.
  const room = Math.max(byId("reliability").clientWidth, 300), columns = Math.max(2, Math.floor(room / 240)), side = Math.min(190, Math.floor(room / columns) - 72);
  const order = splits.filter((split) => bins.some((bin) => bin.panel === split));
  await draw("reliability", { bins }, (specification) => ({ ...specification, columns,
    facet: { ...specification.facet, sort: order }, spec: { ...specification.spec, width: side, height: side } }));
  byId("reliability-caption").replaceChildren(legend(rows), whose(), "Accuracy against confidence in 15 bins of equal width, seeds pooled. " +
    "The area of a mark is its share of the images; bins with few images are not on the line. On the diagonal, confidence is calibrated; below it, it is too high.");
}

async function drawAll() {
  await Promise.all([drawScatter(), drawBars(), drawReliability()]);
}
