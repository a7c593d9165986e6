// What the filters leave, and what of it the table and the charts show.

const form = at("filters");
const wanted = { model: null, budget: null, task: null, published: null, text: "" };
const matches = ({ model, budget, row, method }) =>
  (!wanted.model || model === wanted.model) && (!wanted.budget || budget === wanted.budget) &&
  `${row}\n${method}`.toLowerCase().includes(wanted.text);
const shownEntries = () => entries.filter(matches);
const shownTasks = () => (wanted.task ? [wanted.task] : tasks);

/** The name of a row, with its budget and its model where rows of several are shown. */
function labelOf({ row, budget, model }) {
  const budgetToo = budget && budget !== data.as_given && budgets.length > 1 && !wanted.budget;
  const modelToo = model && models.length > 1 && !wanted.model;
  return [row, budgetToo && `budget ${budget}`, modelToo && model].filter(Boolean).join(" · ");
}

// The task of charts with one score for each row: the chosen one, else the average (null) if there is one.
const oneTask = () => wanted.task ?? (averaged ? null : tasks[0]);
const nameOf = (task) => (task === null ? "average over tasks" : metrics.has(task) ? `${task}, ${metrics.get(task)}` : task);
const better = (task) => (task !== null && smaller(task) ? "smaller" : "larger");
const sign = (task) => (better(task) === "smaller" ? -1 : 1);

// Scores

const bests = new Map(); // of each model and task, among the rows shown

function findBests(found) {
  bests.clear();
  for (const entry of found) {
    for (const task of [null, ...tasks]) {
      const score = cellOf(entry, task)?.score ?? null, key = `${entry.model}\n${task}`;
      if (score !== null && !(sign(task) * score <= sign(task) * bests.get(key))) bests.set(key, score);
    }
  }
}

const below = (words) => made("small", { className: "below" }, words);

function scoreCell(entry, task) {
  const cell = cellOf(entry, task), children = [];
  const score = written.score(cell?.score);
  children.push(cell && bests.get(`${entry.model}\n${task}`) === cell.score ? made("strong", {}, score) : score);
  if ((cell?.low ?? null) !== null) children.push(made("small", {}, ` ± ${written.score((cell.high - cell.low) / 2)}`));
  if (cell?.failed) children.push(below(`${cell.failed} failed`));
  const theirs = published.find((one) => one.source === wanted.published && one.task === task && one.row === entry.row);
  if (theirs) children.push(below(`published ${written.score(theirs.score)}`));
  return children;
}

function opener(title, act) {
  const button = made("button", { type: "button", className: "link" }, title);
  button.addEventListener("click", act);
  return button;
}

const textColumn = (title, field) => ({ title, value: (one) => one[field] });
const numberColumn = (title, field, show) => ({ ...textColumn(title, field), number: true, show });
const scoreColumns = ["score", "low", "high"].map((name) => numberColumn(name, name, written.score));

function rowCell(entry) {
  const button = opener(entry.row, () => openEntry(entry, null));
  return entry.method && entry.method !== entry.row ? [button, below(entry.method)] : [button];
}

const scoreColumn = (task) => ({
  title: task ?? "average",
  number: true,
  value: (entry) => cellOf(entry, task)?.score,
  cell: (entry) => scoreCell(entry, task),
  hidden: () => (task === null ? !averaged || wanted.task : wanted.task && wanted.task !== task),
});
const scores = sortable("Scores: methods by tasks", [
  { ...textColumn("row", "row"), cell: rowCell },
  { ...textColumn("budget", "budget"), hidden: () => budgets.length < 2 },
  { ...textColumn("model", "model"), hidden: () => models.length < 2 || wanted.model },
  numberColumn("trained", "trained", written.count),
  ...tasks.map(scoreColumn),
  scoreColumn(null),
]);

// Scores and costs

const costs = {
  trained: { field: "trained", title: "trained parameters", format: "~s", show: written.count },
  seconds: { field: "seconds", title: "seconds of training", format: "~g", show: written.seconds },
  memory: { field: "memory", title: "peak memory, MiB", format: "~s", show: written.memory },
};

function frontValues({ field, show }) {
  const task = oneTask();
  const values = shownEntries().flatMap((entry) => {
    const cell = cellOf(entry, task), cost = cell?.[field] ?? entry[field] ?? null;
    if ((cell?.score ?? null) === null || cost === null) return [];
    const { number } = entry, { score, low, high, count } = cell, label = labelOf(entry);
    const result = written.score(score) + within(cell);
    return [{ label, number, score, low, high, count, [field]: cost, written: show(cost), result }];
  });
  return front(values, field, sign(task));
}

/** Sort values by their cost, and mark those that no other beats: at least as cheap, and better. */
function front(values, field, sign) {
  let best = -Infinity;
  return [...values].sort((a, b) => a[field] - b[field] || sign * (b.score - a.score)).map((value) => {
    const above = sign * value.score > best;
    if (above) best = sign * value.score;
    return { ...value, front: above };
  });
}

// Learning rates

const isTuned = (run) => run.stage === "tuning" && run.state === "done" && run.score !== null && run.rate > 0;
const same = (a, b) => Math.abs(a - b) <= 1e-5 * b;

function grouped(values, key) {
  const found = new Map();
  for (const value of values) {
    const group = found.get(key(value));
    if (group) group.push(value);
    else found.set(key(value), [value]);
  }
  return [...found.values()];
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const line = ({ entry, task }) => `${entry}\n${task}`;

/** Mean scores over the seeds of tuning, line by line: those of an entry and a task. */
function ratesLines() {
  const tuned = runs.filter((run) => isTuned(run) && matches(run) && shownTasks().includes(run.task));
  const points = grouped(tuned, (run) => `${line(run)}\n${run.rate}`).map((group) => {
    const [{ entry, task, rate, place }] = group, score = mean(group.map((run) => run.score));
    const chosen = same(rate, entries[entry].cells.get(task)?.rate ?? NaN);
    const label = labelOf(entries[entry]);
    return { label, entry, task, rate, place, score, chosen, written: written.rate(rate), result: written.score(score) };
  });
  return grouped(sorted(points, (one) => one.rate), line);
}

function ratesValues() {
  const one = shownTasks().length === 1;
  const values = ratesLines().flatMap((points) => {
    const up = sign(points[0].task), best = up * Math.max(...points.map(({ score }) => up * score));
    return points.map((point) => ({ ...point, y: one ? point.score : -Math.abs(point.score - best) }));
  });
  return sorted(values, ({ entry }) => entry);
}

/** Count the lines whose chosen rate is the smallest or the largest one tried. */
const edges = (values) =>
  grouped(values, line).filter((points) => points.length > 1 && (points[0].chosen || points.at(-1).chosen)).length;

// Losses

/** The mean losses of the best entries shown, as many as there are colours. */
function lossesValues() {
  const task = oneTask();
  const scored = shownEntries().filter((entry) => (cellOf(entry, task)?.score ?? null) !== null);
  const best = sorted(scored, (entry) => -sign(task) * cellOf(entry, task).score).slice(0, PALETTE.length);
  const reported = runs.filter((run) => run.stage === "report" && shownTasks().includes(run.task));
  return best.flatMap((entry) => {
    const label = labelOf(entry), own = grouped(reported.filter((run) => run.entry === entry.number), line);
    return own.flatMap((group) => {
      const { task } = group[0];
      return meanCurve(group).map((point) => ({ ...point, entry: entry.number, label, task }));
    });
  });
}

function meanCurve(found) {
  const points = grouped(found.flatMap(curveOf), ({ step }) => step);
  const means = points.map((group) => ({ step: group[0].step, loss: mean(group.map(({ loss }) => loss)) }));
  return sorted(means, ({ step }) => step);
}

// Differences

const SIDES = ["better", "worse", "undecided"];

function forestValues() {
  return intervals.filter(isShown).map((one) => {
    const { task, baseline, difference, low, high } = one;
    const label = labelOf(one);
    const side = SIDES[low > 0 ? 0 : high < 0 ? 1 : 2];
    const result = `${written.signed(difference)} (${written.signed(low)} to ${written.signed(high)})`;
    return { label, task, baseline, difference, low, high, side, result, panel: `${task}, baseline ${baseline}` };
  });
}

/** Whether the entry that an interval is about is shown; a row as given may be compared with a baseline at any budget. */
const isShown = (one) => shownTasks().includes(one.task) && shownEntries().some((entry) => entry.row === one.row &&
  (!one.model || one.model === entry.model) && (!one.budget || [one.budget, data.as_given].includes(entry.budget)));
