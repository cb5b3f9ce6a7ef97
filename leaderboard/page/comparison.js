"use strict";
// The comparison of two selected rows: differences, intervals and tests, as `bench compare` computes them.

function drawComparison() {
  const rows = chosenRows().map(rowById), body = byId("comparison-body");
  if (rows.length !== 2) {
    const now = rows.length ? ` ${rows.length} ${rows.length === 1 ? "is" : "are"} selected.` : "";
    body.replaceChildren(make("p", { class: "caption" }, `Select two rows in the table or the scatter.${now}`));
    return;
  }
  const [first, second] = rows.map((row) => row.id);
  // A pair is in the document once, under the order of the board; the selection may be in the other.
  const straight = board().comparisons[`${first} ${second}`], found = straight ?? board().comparisons[`${second} ${first}`];
  if (!found) {
    body.replaceChildren(make("p", {}, whyNotCompared(rows)));
    return;
  }
  const [a, b] = straight ? rows : rows.toReversed();
  body.replaceChildren(
    make("p", {}, make("b", {}, "A"), " ", swatch(a), a.name, make("br"), make("b", {}, "B"), " ", swatch(b), b.name),
    make("div", { class: "questions" },
      question("These trained models", "Would other test images of the same kind give the same result? Paired bootstrap over images, " +
        "which keeps the predictions of all seeds on an image together.", found.verdicts.models, found.models),
      question("The method, with other seeds", `Would training again give the same result? t-interval of the differences of ` +
        `${found.seeds.length} shared seeds${found.seeds.length < 5 ? ", which are too few for much power" : ""}.`,
        found.verdicts.method, found.method)),
    make("p", { class: "caption" }, "A minus B in points with 95 % intervals. p is corrected over the datasets (Holm), except for the OOD mean, " +
      "which is a separate question. A tie is no evidence of equality."),
    ...details(found));
}

function whyNotCompared(rows) {
  if (rows.some((row) => row.kind === "reported")) return "A reported row has no predictions and no seeds here, so it cannot be tested.";
  const names = rows.map((row) => `'${row.name}'`).join(" ");
  return `Only the first ${board().compared} rows of a board are compared on the page. In a shell: bench compare ${names} --suite ${board().suite}`;
}

function question(title, about, verdict, differences) {
  // One scale for all datasets of a question. An entry is a list, in the order of `_difference` in details.py.
  const widest = Math.max(0.001, ...differences.flatMap((d) => [d[3], d[4], d[5]].map((end) => Math.abs(end ?? 0))));
  const rows = differences.map(([name, a, b, difference, low, high, p, says, why, deterministic]) => [
    name, a === null ? null : percent(a), b === null ? null : percent(b), difference === null ? missing(why) : signed(difference),
    low === null ? (deterministic ? "deterministic" : missing(why || "no interval")) : `[${signed(low)}, ${signed(high)}]`, forest(difference, low, high, widest, says), pValue(p),
    make("span", { class: `verdict ${says}` }, says)]);
  return make("section", { class: "question" }, make("h3", {}, title), make("p", { class: "caption" }, about),
    make("p", { class: "words" }, verdict.startsWith("unknown") ? verdict : `A is ${verdict}`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      simpleTable(title, ["dataset", "A", "B", "A \u2212 B", "95 %", "", "p", "A is"], rows, (i) => [1, 2, 3, 4, 6].includes(i))));
}

/** The difference as a mark and its interval as a line, around zero in the middle. */
function forest(difference, low, high, widest, says) {
  const place = (value) => `${50 + (48 * value) / widest}%`;
  const chart = make("div", { class: `forest ${says}`, "aria-hidden": "true" });
  if (low !== null) {
    const line = make("span", { class: "line" });
    line.style.left = place(low);
    line.style.width = `${(48 * (high - low)) / widest}%`;
    chart.append(line);
  }
  if (difference !== null) {
    const dot = make("span", { class: "dot" });
    dot.style.left = place(difference);
    chart.append(dot);
  }
  return chart;
}

function details(found) {
  const sets = [...new Set(found.tests.map((test) => test[0]))], made = [];
  const cell = (about, seed) => found.tests.find((t) => t[0] === about && t[1] === seed);
  if (found.tests.length) made.push(folded("McNemar\u2019s exact test, per seed", simpleTable(
    "Images that only A gets right : only B; p corrected over the datasets of the seed", ["dataset", ...found.seeds.map((s) => `seed ${s}`)],
    sets.map((about) => [about, ...found.seeds.map((seed) => {
      const test = cell(about, seed);
      return test ? `${test[2]} : ${test[3]}, p ${pValue(test[4])}` : null;
    })]))));
  if (found.alike.length) made.push(folded("Agreement and overlap of errors", simpleTable(
    "Percent of the images, means over the shared seeds. Error consistency is Cohen\u2019s kappa of right and wrong.",
    ["dataset", "same prediction", "only A right", "only B right", "shared errors", "error consistency"],
    found.alike.map(([about, same, onlyA, onlyB, overlap, kappa]) => [about, percent(same), percent(onlyA), percent(onlyB),
      overlap === null ? null : percent(overlap), kappa === null ? null : kappa.toFixed(2)]), (i) => i > 0)));
  return made;
}

function folded(title, table) {
  return make("details", {}, make("summary", {}, title), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table));
}
