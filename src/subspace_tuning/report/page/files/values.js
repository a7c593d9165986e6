// What the filters leave, and what of it the table and the charts show.

const form = at("filters");
const wanted = { model: null, budget: null, task: null, published: null, text: "" };
const matches = (entry) =>
  (!wanted.model || entry.model === wanted.model) && (!wanted.budget || entry.budget === wanted.budget) &&
  `${entry.row}\n${entry.method}`.toLowerCase().includes(wanted.text);
const shownEntries = () => entries.filter(matches);
const shownTasks = () => (wanted.task ? [wanted.task] : tasks);

// The task of the charts with one score for each row: the chosen one, else the average if there is one.
const oneTask = () => wanted.task ?? (averaged ? null : tasks[0]);
const nameOf = (task) => (task === null ? "average over the tasks" : `${task}${metrics.has(task) ? `, ${metrics.get(task)}` : ""}`);
const better = (task) => (task !== null && smaller(task) ? "smaller" : "larger");

function pairOf(cell) {
  const half = cell.low === null ? "" : ` ± ${written.score((cell.high - cell.low) / 2)}`;
  return [written.score(cell.score), made("small", {}, half)];
}

// Scores

const bests = new Map(); // of each model and task, among the rows shown

function findBests() {
  bests.clear();
  for (const entry of shownEntries()) {
    for (const task of [null, ...tasks]) {
      const { score = null } = cellOf(entry, task) ?? {}, key = `${entry.model}\n${task}`;
      if (score === null) continue;
      const sign = better(task) === "smaller" ? -1 : 1;
      if (!bests.has(key) || sign * score > sign * bests.get(key)) bests.set(key, score);
    }
  }
}

function scoreCell(entry, task) {
  const cell = cellOf(entry, task), children = [];
  if (cell && cell.score !== null) {
    const best = bests.get(`${entry.model}\n${task}`) === cell.score;
    const [score, half] = pairOf(cell);
    children.push(best ? made("strong", { title: "best of the rows shown" }, score) : score, half);
  } else {
    children.push("–");
  }
  if (cell?.failed) children.push(made("small", { className: "below" }, `${cell.failed} failed`));
  const theirs = task && wanted.published && published.find((one) => one.model === wanted.published && one.task === task &&
    one.row === entry.row && (!one.budget || one.budget === entry.budget));
  if (theirs) children.push(made("small", { className: "below" }, `published ${written.score(theirs.score)}`));
  return children;
}

const opener = (title, act) => {
  const button = made("button", { type: "button", className: "link" }, title);
  button.addEventListener("click", act);
  return button;
};

const entryColumns = [
  { title: "row", value: ({ row }) => row, cell: (entry) => [opener(entry.row, () => openEntry(entry, null))] },
  { title: "method", value: ({ method }) => method, hidden: () => entries.every(({ row, method }) => row === method) },
  { title: "budget", value: ({ budget }) => budget, hidden: () => budgets.length < 2 },
  { title: "model", value: ({ model }) => model, hidden: () => models.length < 2 || wanted.model },
  { title: "trained", number: true, value: ({ trained }) => trained, show: written.count },
];
const scoreColumn = (task) => ({
  title: task ?? "average",
  number: true,
  value: (entry) => cellOf(entry, task)?.score ?? null,
  cell: (entry) => scoreCell(entry, task),
  hidden: () => (task === null ? !averaged || wanted.task : wanted.task && wanted.task !== task),
});
const scores = sortable("Scores: methods by tasks", [...entryColumns, ...tasks.map(scoreColumn), scoreColumn(null)]);
at("scores-table").append(scores.element);

// Charts

const costs = {
  trained: { field: "trained", title: "trained parameters", format: "~s", show: written.count, of: (entry) => entry.trained },
  seconds: { field: "seconds", title: "seconds of training", format: "~g", show: written.seconds, of: (_, cell) => cell.seconds },
  memory: { field: "memory", title: "peak memory, MiB", format: "~s", show: written.memory, of: (_, cell) => cell.memory },
};

function frontValues({ field, show, of }) {
  const task = oneTask();
  const values = shownEntries().flatMap((entry) => {
    const cell = cellOf(entry, task), cost = cell && of(entry, cell);
    if (!cell || cell.score === null || cost === null) return [];
    const { label, number } = entry, { score, low, high, count } = cell;
    return [{ label, number, score, low, high, count, [field]: cost, written: show(cost), result: written.score(score) + within(cell) }];
  });
  return front(values, field, better(task));
}

const textColumn = (title, field) => ({ title, value: (one) => one[field] });
const numberColumn = (title, field, show) => ({ title, number: true, value: (one) => one[field], show });
const scoreColumns = [numberColumn("score", "score", written.score), numberColumn("low", "low", written.score), numberColumn("high", "high", written.score)];

function frontChart(parent, cost) {
  return chart(parent, {
    title: `Score and ${cost.title}`,
    values: () => frontValues(cost),
    spec: (values, width) => frontSpec(values, { ...cost, better: better(oneTask()) }, width, nameOf(oneTask())),
    caption: (values) => {
      const leading = values.filter((value) => value.front).map((value) => value.label);
      return `Score (${nameOf(oneTask())}; ${better(oneTask())} is better) against ${cost.title}. No row is at least as cheap ` +
        `and better than those on the front: ${leading.join(", ") || "none"}.`;
    },
    columns: [textColumn("row", "label"), numberColumn(cost.title, cost.field, cost.show), ...scoreColumns,
      { title: "on the front", value: (one) => (one.front ? "yes" : "no") }],
    open: ({ number }) => number !== undefined && openEntry(entries[number], oneTask()),
  });
}

const isScored = (run) => run.state === "done" && run.score !== null;
const same = (a, b) => a !== null && b !== null && Math.abs(a - b) <= 1e-5 * Math.abs(b);

function ratesValues() {
  const groups = new Map();
  for (const run of runs) {
    if (run.stage !== "tuning" || !isScored(run) || !(run.rate > 0) || !matches(run) || !shownTasks().includes(run.task)) continue;
    const key = `${run.entry}\n${run.task}\n${run.rate}`;
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  const values = [...groups.values()].map((group) => {
    const [{ entry, task, rate, place }] = group, { label } = entries[entry];
    const score = group.reduce((sum, run) => sum + run.score, 0) / group.length;
    const chosen = same(rate, entries[entry].cells.get(task)?.rate ?? null);
    return { label, entry, task, rate, place, score, chosen, written: written.rate(rate), result: written.score(score) };
  });
  const found = sorted(sorted(values, (one) => one.rate), (one) => one.entry);
  return shownTasks().length === 1 ? found.map((one) => ({ ...one, y: one.score })) : belowBest(found);
}

/** Tasks have metrics of their own: what several of them have in common is how far a rate is behind the row's best. */
function belowBest(values) {
  const best = new Map();
  for (const { entry, task, score } of values) {
    const key = `${entry}\n${task}`, sign = better(task) === "smaller" ? -1 : 1;
    if (!best.has(key) || sign * score > sign * best.get(key)) best.set(key, score);
  }
  return values.map((one) => ({ ...one, y: -Math.abs(one.score - best.get(`${one.entry}\n${one.task}`)) }));
}

/** Count the rows and tasks whose chosen rate is the smallest or the largest one tried. */
function edges(values) {
  const grids = new Map();
  for (const one of values) {
    const key = `${one.entry}\n${one.task}`;
    grids.set(key, [...(grids.get(key) ?? []), one]);
  }
  return [...grids.values()].filter((grid) => grid.length > 1 && (grid[0].chosen || grid.at(-1).chosen)).length;
}

const MOST_CURVES = PALETTE.length;

function lossesValues() {
  const task = oneTask(), sign = better(task) === "smaller" ? 1 : -1;
  const scored = shownEntries().filter((entry) => (cellOf(entry, task)?.score ?? null) !== null);
  const best = sorted(scored, (entry) => sign * cellOf(entry, task).score).slice(0, MOST_CURVES);
  return best.flatMap(({ number, label }) => shownTasks().flatMap((name) => meanCurve(reported(number, name))
    .map((point) => ({ ...point, entry: number, label, task: name }))));
}

const reported = (entry, task) => runs.filter((run) => run.entry === entry && run.task === task && run.stage === "report");

/** The mean of several runs' losses at each step that they have. */
function meanCurve(found) {
  const losses = new Map();
  for (const { step, loss } of found.flatMap(({ place }) => curveOf(place))) losses.set(step, [...(losses.get(step) ?? []), loss]);
  return [...losses].map(([step, all]) => ({ step, loss: all.reduce((sum, loss) => sum + loss) / all.length })).sort((a, b) => a.step - b.step);
}

function forestValues() {
  return intervals.filter((one) => shownTasks().includes(one.task)).flatMap((one) => {
    const entry = entries.find((entry) => entry.row === one.row && (!one.model || one.model === entry.model) &&
      (!one.budget || one.budget === entry.budget));
    if (entry && !entries.some((other) => other.row === one.row && matches(other))) return [];
    if ((one.model && wanted.model && one.model !== wanted.model) || (one.budget && wanted.budget && one.budget !== wanted.budget)) return [];
    const label = [one.row, budgets.length > 1 && one.budget, models.length > 1 && one.model].filter(Boolean).join(" · ");
    const up = better(one.task) === "smaller" ? -1 : 1;
    const side = one.low * up > 0 && one.high * up > 0 ? "better" : one.low * up < 0 && one.high * up < 0 ? "worse" : "not told apart";
    const result = `${written.signed(one.difference)} (${written.signed(one.low)} to ${written.signed(one.high)})`;
    return [{ ...one, label, side, result, panel: `${one.task}, from ${one.baseline}` }];
  });
}
