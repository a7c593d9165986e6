// The details of a run, the sections, and the filters at work.

const dialog = at("details");
const chooser = at("choice").querySelector("select");
let offered = [];

function openRuns(title, found) {
  if (!found.length) return;
  offered = found;
  at("details-title").textContent = title;
  at("choice").hidden = found.length < 2;
  chooser.replaceChildren(...found.map((run, value) => made("option", { value }, summary(run))));
  dialog.showModal();
  showRun(found[0]);
  dialog.scrollTop = 0;
}

function summary({ task, stage, seed, rate, state, score }) {
  const result = state === "done" ? written.score(score) : state;
  return `${task}, ${stage}, seed ${written.text(seed)}, rate ${written.rate(rate)}: ${result}`;
}

function showRun(run) {
  const facts = [
    ["run", run.run], ["task", run.task], ["stage", run.stage], ["state", run.state],
    [run.metric ?? "score", written.score(run.score)], ["learning rate", written.rate(run.rate)],
    ["seed", written.text(run.seed)], ["trained", written.count(run.trained)], ["head", written.count(run.head)],
    ["time", written.seconds(run.seconds)], ["memory", written.memory(run.memory)],
    ...(run.error ? [["error", run.error]] : []),
  ];
  at("facts").replaceChildren(...facts.flatMap(([name, value]) => [made("dt", {}, name), made("dd", {}, value)]));
  at("config").textContent = JSON.stringify(configOf(run), null, 2);
  const curve = curveOf(run);
  at("curve").parentElement.hidden = !curve.length;
  if (curve.length) vegaEmbed(at("curve"), lossSpec(curve, at("curve").clientWidth), DRAWING);
}

function openEntry(entry, task) {
  const own = runs.filter((run) => run.entry === entry.number && (!task || run.task === task));
  const reported = own.filter((run) => run.stage === "report");
  openRuns(labelOf(entry), reported.length ? reported : own);
}

const openRun = (place) => openRuns(runs[place].row, [runs[place]]);

chooser.addEventListener("change", () => showRun(offered[chooser.value]));
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// The sections

const MOST = 12; // names in a caption
const listed = (labels) => {
  const rest = labels.length > MOST + 1 ? labels.length - MOST : 0;
  return (labels.slice(0, rest ? MOST : undefined).join(", ") || "none") + (rest ? ` and ${rest} others` : "");
};

function frontChart(parent, cost) {
  return chart(parent, {
    title: `Score and ${cost.title}`,
    values: () => frontValues(cost),
    spec: (values, width) => frontSpec(values, { ...cost, better: better(oneTask()) }, width, nameOf(oneTask())),
    caption: (values) => `Score (${nameOf(oneTask())}; ${better(oneTask())} is better) against ${cost.title}. ` +
      "No row is at least as cheap and better than those on the line: " +
      `${listed(values.filter((value) => value.front).map((value) => value.label))}.`,
    columns: [
      textColumn("row", "label"), numberColumn(cost.title, cost.field, cost.show), ...scoreColumns,
      { title: "on the line", value: (one) => (one.front ? "yes" : "no") },
    ],
    open: ({ number }) => number !== undefined && openEntry(entries[number], oneTask()),
  });
}

const differences = {
  title: "Differences from the baseline",
  values: forestValues,
  spec: forestSpec,
  caption: (values) => {
    const count = (side) => values.filter((value) => value.side === side).length;
    return `Paired differences with their intervals: ${count("better")} better than the baseline, ` +
      `${count("worse")} worse, ${count("undecided")} undecided, as the interval contains 0.`;
  },
  columns: [
    textColumn("row", "label"), textColumn("task", "task"), textColumn("baseline", "baseline"),
    ...["difference", "low", "high"].map((name) => numberColumn(name, name, written.signed)), textColumn("result", "side"),
  ],
};

const rates = {
  title: "Score and learning rate",
  values: ratesValues,
  spec: ratesSpec,
  caption: (values) => {
    const one = shownTasks().length === 1;
    return (one ? `Mean score (${nameOf(shownTasks()[0])})` : "How far the mean score is behind the row's best") +
      " in the tuning runs at each learning rate. A diamond marks the chosen rate; " +
      `${plural(edges(values), "choice is", "choices are")} at an edge of the rates tried.`;
  },
  columns: [
    textColumn("row", "label"), textColumn("task", "task"), numberColumn("rate", "rate", written.rate),
    numberColumn("score", "score", written.score), { title: "chosen", value: (one) => (one.chosen ? "yes" : "no") },
  ],
  open: ({ place }) => place !== undefined && openRun(place),
};

const losses = {
  title: "Loss",
  values: lossesValues,
  spec: lossesSpec,
  caption: (values) => `Training loss, mean over seeds, of the best rows shown (${nameOf(oneTask())}): ` +
    `${listed(distinct(values.map((value) => value.label)))}. At most ${PALETTE.length} are drawn; filter for others.`,
  columns: [
    textColumn("row", "label"), textColumn("task", "task"), numberColumn("step", "step", written.count),
    numberColumn("loss", "loss", written.score),
  ],
  open: ({ entry, task }) => entry !== undefined && openEntry(entries[entry], task),
};

const pair = at("cost").querySelector(".pair");
const charts = [
  frontChart(at("parameters"), costs.trained), frontChart(pair, costs.seconds), frontChart(pair, costs.memory),
  chart(at("differences"), differences), chart(at("rates"), rates), chart(at("losses"), losses),
];

const shortened = (name) => (name.length > 16 ? name.slice(0, 8) : name); // a digest is told by its beginning
const list = sortable("Runs", [
  { title: "run", value: ({ run }) => run, cell: (run) => [opener(shortened(run.run), () => openRun(run.place))] },
  ...["row", "budget", "model", "task", "stage", "state"].map((name) => ({
    ...textColumn(name, name),
    hidden: () => (name === "budget" && budgets.length < 2) || (name === "model" && models.length < 2),
  })),
  numberColumn("seed", "seed", written.text), numberColumn("rate", "rate", written.rate),
  numberColumn("score", "score", written.score), numberColumn("time", "seconds", written.seconds),
  numberColumn("memory", "memory", written.memory),
], 25);
at("scores-table").append(scores.element);
at("runs-table").append(list.element);

// The filters

function update() {
  const found = shownEntries(), own = runs.filter((run) => matches(run) && shownTasks().includes(run.task));
  const count = `${written.count(found.length)} of ${plural(entries.length, "row")}`;
  at("shown").textContent = `${count}, ${plural(own.length, "run")}`;
  findBests(found);
  scores.fill(found);
  list.fill(own);
  for (const one of charts) one.update();
}

function read() {
  for (const name of ["model", "budget", "task", "published"]) wanted[name] = form.elements[name].value || null;
  wanted.text = form.elements.text.value.trim().toLowerCase();
  update();
}

/** Offer the values of a filter, unless there are too few to choose from. */
function offer(name, values, all, { fewest = 2, first = false } = {}) {
  const select = form.elements[name];
  const options = values.map((value, n) => made("option", { value, defaultSelected: first && n === 0 }, value));
  select.replaceChildren(made("option", { value: "" }, all), ...options);
  select.parentElement.hidden = values.length < fewest;
}

function tell() {
  const own = [...new Map(runs.map((run) => [numberOf(run), run])).values()]; // each once
  const reported = distinct(own.filter((run) => run.stage === "report").map((run) => run.seed)).length;
  const done = own.filter((run) => run.state === "done").length;
  at("about").textContent = [
    plural(entries.length, "row"), plural(tasks.length, "task"),
    models.length > 3 ? `${models.length} models` : models.join(", "),
    plural(reported, "seed"), `${written.count(done)} of ${plural(own.length, "run")} done`,
  ].join(" · ");
  at("version").textContent = data.version;
  at("scores-text").textContent = `Means over seeds ± half of their ${100 * data.level} % interval (Student's t). ` +
    "The best of the rows shown is bold. A row's name opens the configs of its runs.";
}

const SIGNS = { supported: "✓", contradicted: "✗", undecided: "?" };

function tellClaims() {
  const count = (name) => data.verdicts.filter((one) => one.verdict === name).length;
  at("counted").textContent = Object.keys(SIGNS).map((name) => `${count(name)} ${name}`).join(" · ");
  at("verdicts").append(...data.verdicts.map(({ claim, verdict, figure, source }) =>
    made("li", { className: verdict }, made("span", { className: "verdict" }, `${SIGNS[verdict]} ${verdict}`),
      made("strong", {}, claim), made("span", {}, figure), made("span", { className: "soft" }, source))));
}

function start() {
  tell();
  tellClaims();
  offer("model", models, "all models", { first: true }); // scores of several are not comparable
  offer("budget", budgets, "all budgets");
  offer("task", tasks, averaged ? "all, averaged" : "all");
  offer("published", distinct(published.map((one) => one.source)), "not shown", { fewest: 1 });
  const filled = {
    claims: data.verdicts.length, scores: entries.length, parameters: cells.length, differences: intervals.length,
    cost: cells.filter(({ seconds, memory }) => (seconds ?? memory) !== null).length, runs: runs.length,
    rates: ratesValues().length, losses: lossesValues().length,
  };
  for (const section of document.querySelectorAll("main section")) {
    section.hidden = !filled[section.id];
    const link = made("a", { href: `#${section.id}` }, section.dataset.link);
    if (!section.hidden) at("sections").append(made("li", {}, link));
  }
  form.addEventListener("input", read);
  form.addEventListener("reset", () => setTimeout(read)); // once the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
  read();
}

start();
