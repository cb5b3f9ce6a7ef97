"use strict";
// The scatter of ID against the OOD average, a shift or a factor: axes that fit the rows, linear or logit-scaled, and labels that
// do not overlap.

/** Shares are clipped to [edge, 1 - edge] before the logit, which is infinite at 0 and 1. */
const edge = 1e-3;
const logit = (share) => { const clipped = Math.min(Math.max(share, edge), 1 - edge); return Math.log(clipped / (1 - clipped)); };
/** Position of a share on an axis; null for a missing one. */
const place = (share) => (share === null || share === undefined ? null : state.axes === "logit" ? logit(share) : share);

/** Columns for the vertical axis that some row has together with ID: the OOD average first, then every shift or factor. */
const heights = () => (board()?.columns ?? []).filter((c) => c.kind === "percent" && (c.key === "ood" || (c.split && c.part !== "more")))
  .filter((c) => plotted(rowsOfKind(), c.key).length).sort((a, b) => (b.key === "ood") - (a.key === "ood"));
const heightName = (column) => (column.key === "ood" ? "OOD average" : column.title);

/** The rows with both ID and the vertical axis. */
const plotted = (rows, key = state.y) => rows.filter((row) => row.cells.id?.[0] != null && row.cells[key]?.[0] != null);

/** Fall back to the first column with something to plot, if the requested one has nothing. */
function settleHeight() {
  const columns = heights();
  if (!columns.some((column) => column.key === state.y)) state.y = columns[0]?.key ?? usual.y;
}

/** Points of the interpolation curves of these rows. A curve of no row on the board is always included. */
function curvePoints(rows) {
  const ids = new Set(rows.map((row) => row.id)), split = board().columns.find((c) => c.key === state.y)?.split;
  return board().curves.map((p) => ({ ...p, key: p.row || p.of, id: p.scores["id-test"], ood: p.scores[state.y === "ood" ? "ood" : split] }))
    .filter((p) => (!p.row || ids.has(p.row)) && p.id != null && p.ood != null).map((p) => ({ ...p, x: place(p.id), y: place(p.ood) }));
}

/** Ids of the measured rows on the Pareto front. Computed here, since the document has that of the OOD average only. */
function front() {
  const found = new Set();
  let best = -Infinity, last = null;
  const at = (row) => [row.cells.id[0], row.cells[state.y][0]];
  for (const row of plotted(board().rows.filter((r) => r.kind === "measured")).sort((a, b) => at(b)[0] - at(a)[0] || at(b)[1] - at(a)[1])) {
    const [x, y] = at(row);
    if (y > best || (last && last[0] === x && last[1] === y)) { found.add(row.id); best = y; last = [x, y]; }
  }
  return found;
}

/** Range of a column over all rows of the board, including SD and intervals over images. Intervals over few seeds can be much wider
 *  than the differences between rows; they are clipped instead. Rows that are filtered out count too, so that axes do not jump. */
function range(key, rows, more) {
  const all = [...more, ...rows.flatMap((row) => {
    const [value, sd, , , low, high] = row.cells[key];
    return [value, value - (sd ?? 0), value + (sd ?? 0), low ?? value, high ?? value];
  })];
  return [Math.max(0, Math.min(...all)), Math.min(1, Math.max(...all))];
}

/** Scale and axis of a dimension. With logit scaling, the data are logits on a linear scale, since Vega has no logit scale: ticks are
 *  placed here, at the coarsest step that gives five. */
function axis(title, [low, high]) {
  const [first, last] = [place(low), place(high)], room = Math.max(0.05 * (last - first), 0.005);
  const scale = { domain: [first - room, last + room], nice: false, zero: false };
  if (state.axes !== "logit") return { scale, axis: { title: `${title} (%)`, labelExpr: "format(100 * datum.value, '~g')" } };
  const steps = [[0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99], ...[20, 50, 100, 200].map((n) => Array.from({ length: n - 1 }, (_, i) => (i + 1) / n))];
  const inside = steps.map((ticks) => ticks.filter((tick) => low <= tick && tick <= high));
  const values = (inside.find((ticks) => ticks.length >= 5) ?? inside.at(-1)).map(logit);
  return { scale, axis: { title: `${title} (%, logit scale)`, values, labelExpr: "format(100 / (1 + exp(-datum.value)), '~g')" } };
}

/** Whether intervals of all rows would hide the marks. If so, only the selected rows and the Pareto front have theirs. */
const crowded = () => plotted(shownRows()).length > 20;

function points(rows, best) {
  const barred = crowded() ? new Set([...best, ...chosenRows()]) : null;
  return plotted(rows).map((row) => {
    const [id, ood] = [row.cells.id[0], row.cells[state.y][0]];
    const [across, up] = !barred || barred.has(row.id) ? [ends(row.cells.id), ends(row.cells[state.y])] : [null, null];
    const { colour, shape } = styleOf(row);
    return { key: row.id, row: row.name, says: row.name, colour, shape, id, ood, kind: row.kind, twin: state.show === "both" && Boolean(row.measured), front: best.has(row.id), seeds: row.runs.length ? `${row.runs.length}${row.deterministic ? " (deterministic)" : ""}` : null,
             x_id: place(id), y_ood: place(ood), id_low: across?.[0] ?? null, id_high: across?.[1] ?? null, ood_low: up?.[0] ?? null,
             ood_high: up?.[1] ?? null, x_id_low: place(across?.[0]), x_id_high: place(across?.[1]), y_ood_low: place(up?.[0]), y_ood_high: place(up?.[1]) };
  });
}

/** Set `label` and `corner` of the points whose name fits without overlap.
 *
 *  Greedy: selected rows first, then the front, then the others, at the first free corner of each. A text is used once; rows that
 *  differ only in their parameters have the same one, and show the parameters on hover. `twin` marks a reported row whose measured
 *  row is shown too and has the label. At most 40 points are tried. */
function label(marks, xs, ys) {
  const { height, letters, corners } = leaderboard.scatter, width = byId("scatter").clientWidth - 72;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${letters}px system-ui, sans-serif`;
  const across = (p) => (width * (p.x_id - xs[0])) / (xs[1] - xs[0]), up = (p) => height * (1 - (p.y_ood - ys[0]) / (ys[1] - ys[0]));
  const taken = marks.map((p) => [across(p) - 6, up(p) - 6, across(p) + 6, up(p) + 6]);
  const free = (box) => box[0] >= 0 && box[1] >= 0 && box[2] <= width && box[3] <= height &&
    !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
  const chosen = new Set(chosenRows()), first = (p) => 2 * chosen.has(p.key) + p.front, used = new Set();
  for (const point of marks.filter((p) => !p.twin).sort((a, b) => first(b) - first(a)).slice(0, 40)) {
    const [name, parameters] = nameParts(point.row), text = parameters ? `${name} \u2026` : name, wide = pen.measureText(text).width;
    for (const [corner, [dx, dy]] of Object.entries(name.length > 40 || used.has(text) ? {} : corners)) {
      const x = across(point) + dx, y = up(point) + dy, box = [dx < 0 ? x - wide : x, y - letters / 2, dx < 0 ? x : x + wide, y + letters / 2];
      if (!free(box)) continue;
      Object.assign(point, { label: text, corner });
      taken.push(box);
      used.add(text);
      break;
    }
  }
}

async function drawScatter() {
  const all = board()?.figures.scatter ? plotted(rowsOfKind()) : [];
  byId("scatter-figure").hidden = !all.length;
  if (!all.length) { clear("scatter"); return; }
  const rows = plotted(shownRows()), column = heights().find((c) => c.key === state.y);
  const curve = curvePoints(rows), best = front(), marks = points(rows, best), line = board().baselines[state.y] ?? [];
  const ids = range("id", all, curve.map((p) => p.id)), between = line.filter(([id]) => id >= ids[0] && id <= ids[1]).map(([, ood]) => ood);
  const across = axis("ID accuracy", ids);
  const up = axis(state.y === "ood" ? "OOD average" : `accuracy on ${heightName(column)}`, range(state.y, all, [...curve.map((p) => p.ood), ...between]));
  label(marks, across.scale.domain, up.scale.domain);
  const baseline = line.map(([id, ood]) => ({ x: place(id), y: place(ood) })).filter((p) => inside(p.x, across) && inside(p.y, up));
  const view = await draw("scatter", { points: marks, curve, baseline }, (specification) => ({ ...specification,
    layer: specification.layer.map((layer) => ({ ...layer, encoding: { ...layer.encoding, x: { ...layer.encoding.x, ...across }, y: { ...layer.encoding.y, ...up } } })) }));
  byId("scatter-caption").textContent = [spreadWords[state.spread] && `Bars: ${spreadWords[state.spread]}${crowded() ? ", of the selected rows and the front" : ""}.`,
    marks.filter((p) => p.front).length > 1 && "Dotted: Pareto front.",
    curve.length > 0 && "Grey: interpolation from the initial weights (alpha 0) to the fine-tuned ones (alpha 1).",
    baseline.length > 0 && "Dashed: standard models at that ID accuracy.",
    rows.some((row) => row.kind === "reported") && "Hollow: reported, not measured.",
    "Click a mark to select its row. The table has the same numbers."].filter(Boolean).join(" ");
  await mark("chosen", chosenRows());
  view.addSignalListener("hover", (_, value) => hoverRow(value.key?.[0] ?? ""));
  view.addSignalListener("chosen", (_, value) => {
    // `mark` below sends this signal too; without the comparison, an update would start another one.
    const ids = (value.key ?? []).join(",");
    if (ids !== state.rows) { state.rows = ids; changed("rows"); }
  });
}

const inside = (value, { scale: { domain } }) => value >= domain[0] && value <= domain[1];

/** Set one of the scatter's selections (`chosen`, `hover`) to these rows. Vega has no call for it, but saves a selection as data. */
async function mark(selection, ids) {
  const view = views.scatter?.view;
  if (!view) return;
  const fields = [{ type: "E", field: "key" }];
  await view.data(`${selection}_store`, ids.map((id) => ({ unit: "", fields, values: [id] }))).runAsync();
}
