"use strict";
// The drawer with all details of one row: scores per seed, recipe, selection, ids, provenance.

/** The element that had the focus when the drawer opened, and gets it back when it closes. */
let opener = null;

function drawDrawer() {
  const dialog = byId("drawer"), row = rowById(state.row);
  if (!row) {
    if (dialog.open) dialog.close();
    return;
  }
  byId("drawer-title").textContent = row.name;
  byId("drawer-body").replaceChildren(...(row.kind === "reported" ? reportedParts(row) : measuredParts(row)));
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
  }
  byId("drawer-title").focus();
}

function reportedParts(row) {
  const keys = board().columns.filter((column) => row.cells[column.key]), measured = rowById(row.measured);
  const parts = [make("p", {}, "Reported by its source, not measured here."),
    facts("Source", { source: row.source, certainty: row.certainty, note: row.note }),
    simpleTable(measured ? `Compared with ${measured.name}, measured here` : "No row was measured with its recipe", ["percent", "reported", "measured", "difference"],
      keys.map(({ key, title }) => [title, percent(row.cells[key][0]), measured ? numberOr(measured.cells[key]?.[0], percent) : null, numberOr(row.gaps[key], signed)]), (i) => i > 0)];
  if (row.recipe) parts.push(make("p", {}, "To run its recipe: ", make("code", {}, row.recipe)));
  return parts;
}

const numberOr = (value, text) => (value === null || value === undefined ? missing("not measured") : text(value));

/** The published numbers for a measured row's recipe. */
function reportedOf(row) {
  const rows = board().rows.filter((other) => other.measured === row.id);
  return rows.length ? [simpleTable("Reported for this recipe", ["source", "ID", "OOD", "measured − reported ID", "OOD"], rows.map((other) => [`${other.source} (${other.certainty})`,
    ...["id", "ood"].map((key) => percent(other.cells[key][0])), ...["id", "ood"].map((key) => numberOr(other.gaps[key], signed))]), (i) => i > 0)] : [];
}

function measuredParts(row) {
  const splits = ["id-val", "id-test", ...board().shifts];
  const parts = [simpleTable("Scores in percent, seed by seed", ["split", ...row.runs.map((run) => `seed ${run.seed}`)],
    splits.map((split) => [split, ...row.runs.map((run) => (run.scores[split] == null ? missing(run.holes?.[split] ?? "not evaluated") : percent(run.scores[split])))]),
    (i) => i > 0)];
  parts.push(...reportedOf(row), facts("Recipe", flat(row.identity)));
  const selection = flat(row.runs[0].selection ?? {});
  if (Object.keys(selection).length) parts.push(facts(`Selected on id-val (seed ${row.runs[0].seed})`, selection));
  parts.push(simpleTable("Runs", ["seed", "fit", "evaluation", "training", "memory", "finished"], row.runs.map((run) => [
    String(run.seed), make("code", {}, run.fit), make("code", {}, run.eval), run.fit_seconds === null ? null : seconds(run.fit_seconds),
    run.memory_mb === null ? null : `${(run.memory_mb / 1024).toFixed(2)} GiB`, run.finished])));
  const measured = flat(row.runs[0].facts ?? {});
  if (Object.keys(measured).length) parts.push(facts(`Measured while training (seed ${row.runs[0].seed})`, measured));
  // Runs with the same machine and versions share one table; often all of a row's seeds do.
  for (const place of new Set(row.runs.map((run) => run.provenance))) {
    const seeds = row.runs.filter((run) => run.provenance === place).map((run) => run.seed);
    parts.push(facts(`Provenance, seed ${seeds.join(", ")}`, flat(leaderboard.provenance[place])));
  }
  parts.push(facts("Starting weights", flat(leaderboard.provenance[row.runs[0].seen])));
  parts.push(facts("What was compared", board().facts));
  parts.push(make("p", {}, "More: ", make("code", {}, `bench show ${row.runs[0].fit}`)));
  return parts;
}

function facts(title, values) {
  const rows = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return simpleTable(title, ["field", "value"], rows.map(([key, value]) => [key, String(value)]));
}

/** A nested object as `a.b.c` -> value. */
function flat(value, prefix = "") {
  return Object.fromEntries(Object.entries(value ?? {}).flatMap(([key, item]) =>
    item !== null && typeof item === "object" && !Array.isArray(item) ? Object.entries(flat(item, `${prefix}${key}.`))
      : [[prefix + key, Array.isArray(item) ? item.map((one) => (typeof one === "object" ? JSON.stringify(one) : one)).join(", ") : item]]));
}
