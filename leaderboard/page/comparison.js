"use strict";
// Two selected rows against each other: differences and intervals that `bench compare` has computed, for each of two questions.

function drawComparison() {
  const rows = chosenRows().map(rowById), body = byId("comparison-body");
  if (rows.length !== 2) {
    const now = rows.length ? ` ${rows.length} ${rows.length === 1 ? "is" : "are"} selected.` : "";
    body.replaceChildren(make("p", { class: "caption" }, `Select two rows in the table or the scatter.${now}`));
    return;
  }
  const [first, second] = rows.map((row) => row.id);
  const straight = board().comparisons[`${first} ${second}`], found = straight ?? board().comparisons[`${second} ${first}`];
  if (!found) {
    body.replaceChildren(make("p", {}, missing(rows)));
    return;
  }
  const [a, b] = straight ? rows : rows.toReversed();
  body.replaceChildren(
    make("p", {}, make("b", {}, "A"), " ", swatch(a), a.name, make("br"), make("b", {}, "B"), " ", swatch(b), b.name),
    make("div", { class: "questions" },
      question("These trained models", "Would other test images of the same kind say the same? Paired bootstrap over images; what all " +
        "seeds say about an image stays together.", found.verdicts.models, found.models),
      question("The method, with other seeds", `Would training again say the same? t-interval of the differences of ${found.seeds.length} ` +
        `shared seeds${found.seeds.length < 5 ? ": so few can tell little" : ""}.`, found.verdicts.method, found.method)),
    make("p", { class: "caption" }, "A minus B in points with 95 % intervals; p corrected over the data sets (Holm), that of the OOD mean is one " +
      "question of its own. A tie is a difference that is not shown, not one that is absent."),
    ...details(found));
}

function missing(rows) {
  if (rows.some((row) => row.kind === "reported")) return "A reported row has no images and no seeds here: it cannot be tested against another one.";
  const names = rows.map((row) => `'${row.name}'`).join(" ");
  return `Only the first ${board().compared} rows of a board are compared on the page. In a shell: bench compare ${names} --suite ${board().suite}`;
}

function question(title, about, verdict, differences) {
  const widest = Math.max(0.001, ...differences.flatMap((d) => [d[3], d[4], d[5]].map((end) => Math.abs(end ?? 0))));
  const rows = differences.map(([name, a, b, difference, low, high, p, says, why, deterministic]) => [
    name, a === null ? null : percent(a), b === null ? null : percent(b), difference === null ? hole(why) : signed(difference),
    low === null ? (deterministic ? "deterministic" : hole(why || "no interval")) : `[${signed(low)}, ${signed(high)}]`, forest(difference, low, high, widest, says), pValue(p),
    make("span", { class: `verdict ${says}` }, says)]);
  return make("section", { class: "question" }, make("h3", {}, title), make("p", { class: "caption" }, about),
    make("p", { class: "words" }, verdict.startsWith("unknown") ? verdict : `A is ${verdict}`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      simpleTable(title, ["data set", "A", "B", "A \u2212 B", "95 %", "", "p", "A is"], rows, (i) => [1, 2, 3, 4, 6].includes(i))));
}

/** The difference as a mark and its interval as a line, around zero in the middle. */
function forest(difference, low, high, widest, says) {
  const place = (value) => `${50 + (48 * value) / widest}%`;
  const drawn = make("div", { class: `forest ${says}`, "aria-hidden": "true" });
  if (low !== null) {
    const line = make("span", { class: "line" });
    line.style.left = place(low);
    line.style.width = `${(48 * (high - low)) / widest}%`;
    drawn.append(line);
  }
  if (difference !== null) {
    const dot = make("span", { class: "dot" });
    dot.style.left = place(difference);
    drawn.append(dot);
  }
  return drawn;
}

function details(found) {
  const sets = [...new Set(found.tests.map((test) => test[0]))], made = [];
  const cell = (about, seed) => found.tests.find((t) => t[0] === about && t[1] === seed);
  if (found.tests.length) made.push(folded("McNemar\u2019s exact test, per seed", simpleTable(
    "Images that only A gets right : only B; p corrected over the data sets of the seed", ["data set", ...found.seeds.map((s) => `seed ${s}`)],
    sets.map((about) => [about, ...found.seeds.map((seed) => {
      const test = cell(about, seed);
      return test ? `${test[2]} : ${test[3]}, p ${pValue(test[4])}` : null;
    })]))));
  if (found.alike.length) made.push(folded("Agreement and overlap of errors", simpleTable(
    "Percent of the images, means over the shared seeds; error consistency is Cohen\u2019s kappa of right and wrong",
    ["data set", "same prediction", "only A right", "only B right", "shared errors", "error consistency"],
    found.alike.map(([about, same, onlyA, onlyB, overlap, kappa]) => [about, percent(same), percent(onlyA), percent(onlyB),
      overlap === null ? null : percent(overlap), kappa === null ? null : kappa.toFixed(2)]), (i) => i > 0)));
  return made;
}

function folded(title, table) {
  return make("details", {}, make("summary", {}, title), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table));
}
