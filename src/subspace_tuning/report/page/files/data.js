// The data of the page, decoded, and how its values are written.

const at = (id) => document.getElementById(id);

function made(tag, fields, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

function records(table) {
  const names = Object.keys(table ?? {});
  const columns = names.map((name) =>
    Array.isArray(table[name]) ? table[name] : table[name].at.map((place) => table[name].of[place] ?? null));
  return (columns[0] ?? []).map((_, row) => Object.fromEntries(names.map((name, n) => [name, columns[n][row]])));
}

const data = JSON.parse(at("data").textContent);
const entries = records(data.entries);
const cells = records(data.cells);
const averages = records(data.averages);
const intervals = records(data.intervals).filter(({ difference }) => difference !== null);
const published = records(data.published);
const runs = records(data.runs).map((run, place) => ({ ...entries[run.entry], ...run, place }));

const distinct = (values) => [...new Set(values)];
const models = distinct(entries.map((entry) => entry.model));
const budgets = distinct(entries.map((entry) => entry.budget));
const tasks = distinct(runs.map((run) => run.task));

for (const [number, entry] of entries.entries()) {
  Object.assign(entry, { number, cells: new Map(), average: null });
}
for (const cell of cells) entries[cell.entry].cells.set(cell.task, cell);
for (const cell of averages) entries[cell.entry].average = cell;

const metrics = new Map(cells.filter((cell) => cell.metric).map((cell) => [cell.task, cell.metric]));
const smaller = (task) => data.smaller.includes(metrics.get(task));
const averaged = tasks.length > 1 && !tasks.some(smaller) && averages.length > 0;

// What a cell of the table is: that of a task, or of the average where no task is named.
const cellOf = (entry, task) => (task ? entry.cells.get(task) : entry.average) ?? null;

// A run that stands in two cells has one config and one curve.
const numberOf = ({ place }) => data.runs.run.at[place];

function configOf(run) {
  const config = {}, number = numberOf(run);
  for (const { path, of, at: places } of data.configs) {
    if (places[number] < 0) continue;
    let inner = config;
    for (const key of path.slice(0, -1)) {
      if (!Object.hasOwn(inner, key)) set(inner, key, {});
      inner = inner[key];
    }
    set(inner, path.at(-1), of[places[number]]);
  }
  return config;
}

// Unlike an assignment, also for a key such as __proto__.
const set = (object, key, value) =>
  Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });

function curveOf(run) {
  const number = numberOf(run), steps = data.curves.steps[data.curves.at[number]];
  return steps.map((step, n) => ({ step, loss: data.curves.losses[number][n] })).filter(({ loss }) => loss !== null);
}

// How values are written; a missing one is a dash.

const orDash = (write) => (value) => (value === null || value === undefined ? "–" : write(value));
const digits = (value) => (Math.abs(value) >= 10 ? 2 : 3);
const written = {
  text: orDash(String),
  count: orDash((value) => value.toLocaleString("en")),
  score: orDash((value) => value.toFixed(digits(value)).replace("-", "−")),
  signed: orDash((value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits(value))),
  rate: orDash((value) => value.toExponential(1).replace(".0e", "e").replace("e+", "e").replace("-", "−")),
  seconds: orDash((value) => {
    if (value < 100) return `${value.toPrecision(3)} s`;
    return value < 6000 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
  }),
  memory: orDash((value) => (value < 1024 ? `${value.toFixed(0)} MiB` : `${(value / 1024).toFixed(1)} GiB`)),
};
const within = (cell) => (cell.low === null ? "" : ` (${written.score(cell.low)} to ${written.score(cell.high)})`);
const plural = (count, one, many = `${one}s`) => `${written.count(count)} ${count === 1 ? one : many}`;
