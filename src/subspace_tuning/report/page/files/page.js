// The details of a run, the sections, and the filters at work.

const dialog = at("details");
const chooser = at("choice").querySelector("select");
let offered = [];

function openRuns(title, found) {
  if (!found.length) return;
  offered = found;
  at("details-title").textContent = title;
  at("choice").hidden = found.length < 2;
  chooser.replaceChildren(...found.map((run, n) => made("option", { value: n },
    `${run.task}, ${run.stage}, seed ${written.text(run.seed)}, rate ${written.rate(run.rate)}: ${run.state === "done" ? written.score(run.score) : run.state}`)));
  dialog.showModal();
  showRun(found[0]);
  dialog.scrollTop = 0;
}

function showRun(run) {
  const facts = {
    run: run.run, task: run.task, stage: run.stage, state: run.state, [run.metric ?? "score"]: written.score(run.score),
    "learning rate": written.rate(run.rate), seed: written.text(run.seed), trained: written.count(run.trained),
    head: written.count(run.head), time: written.seconds(run.seconds), memory: written.memory(run.memory),
  };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [made("dt", {}, name), made("dd", {}, value)]));
  const curve = curveOf(run.place);
  at("curve").hidden = !curve.length;
  if (curve.length) vegaEmbed(at("curve"), lossSpec(curve, at("details").clientWidth - 40), DRAWING);
  at("config").textContent = JSON.stringify(configOf(run.place), null, 2);
}

function openEntry(entry, task) {
  const own = runs.filter((run) => run.entry === entry.number && (!task || run.task === task));
  const reported = own.filter((run) => run.stage === "report");
  openRuns(entry.label, reported.length ? reported : own);
}

chooser.addEventListener("change", () => showRun(offered[chooser.value]));
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// The sections

const charts = {
  parameters: [frontChart(at("parameters"), costs.trained)],
  cost: [frontChart(at("cost").querySelector(".pair"), costs.seconds), frontChart(at("cost").querySelector(".pair"), costs.memory)],
  differences: [chart(at("differences"), {
    title: "Differences from the baseline",
    values: forestValues,
    spec: forestSpec,
    caption: (values) => {
      const count = (side) => values.filter((value) => value.side === side).length;
      return `Paired differences and their intervals. ${count("better")} are better than the baseline, ${count("worse")} worse, and ` +
        `${count("not told apart")} cannot be told apart from it.`;
    },
    columns: [textColumn("row", "label"), textColumn("task", "task"), textColumn("baseline", "baseline"),
      numberColumn("difference", "difference", written.signed), numberColumn("low", "low", written.signed),
      numberColumn("high", "high", written.signed), textColumn("result", "side")],
  })],
  rates: [chart(at("rates"), {
    title: "Score and learning rate",
    values: ratesValues,
    spec: ratesSpec,
    caption: (values) => `${shownTasks().length === 1 ? `Mean score (${nameOf(shownTasks()[0])})` : "How far the mean score is behind the row's best"} ` +
      `in the tuning runs at each learning rate; a diamond marks the chosen rate. ` +
      `${plural(edges(values), "choice is", "choices are")} at an edge of the rates tried.`,
    columns: [textColumn("row", "label"), textColumn("task", "task"), numberColumn("rate", "rate", written.rate), scoreColumns[0],
      { title: "chosen", value: (one) => (one.chosen ? "yes" : "no") }],
    open: ({ place }) => place !== undefined && openRuns(runs[place].row, [runs[place]]),
  })],
  losses: [chart(at("losses"), {
    title: "Loss",
    values: lossesValues,
    spec: lossesSpec,
    caption: (values) => {
      const shown = distinct(values.map((value) => value.label));
      return `Training loss, mean over seeds, of the best rows shown (${nameOf(oneTask())}): ${shown.join(", ") || "none"}. ` +
        `At most ${MOST_CURVES} are drawn; filter for others. Long curves are averaged over spans of steps.`;
    },
    columns: [textColumn("row", "label"), textColumn("task", "task"), numberColumn("step", "step", written.count),
      numberColumn("loss", "loss", written.score)],
    open: ({ entry, task }) => entry !== undefined && openEntry(entries[entry], task),
  })],
};

const list = sortable("Runs", [
  { title: "run", value: ({ run }) => run, cell: (run) => [opener(run.run.slice(0, 12), () => openRuns(run.row, [run]))] },
  textColumn("row", "row"),
  { title: "budget", value: ({ budget }) => budget, hidden: () => budgets.length < 2 },
  { title: "model", value: ({ model }) => model, hidden: () => models.length < 2 },
  textColumn("task", "task"), textColumn("stage", "stage"), textColumn("state", "state"),
  numberColumn("seed", "seed", written.text), numberColumn("rate", "rate", written.rate), numberColumn("score", "score", written.score),
  numberColumn("time", "seconds", written.seconds), numberColumn("memory", "memory", written.memory),
], { size: 25 });
at("runs-table").append(list.element);

function update() {
  findBests();
  const found = shownEntries(), listed = runs.filter((run) => matches(run) && shownTasks().includes(run.task));
  at("shown").textContent = `${written.count(found.length)} of ${plural(entries.length, "row")}, ${plural(listed.length, "run")}`;
  scores.fill(found);
  list.fill(listed);
  for (const one of Object.values(charts).flat()) one.update();
}

function options(name, values, all) {
  form.elements[name].replaceChildren(made("option", { value: "" }, all), ...values.map((value) => made("option", {}, value)));
}

function read() {
  for (const name of ["model", "budget", "task", "published"]) wanted[name] = form.elements[name].value || null;
  wanted.text = form.elements.text.value.trim().toLowerCase();
  update();
}

function verdict({ claim, verdict, figure, source }) {
  return made("li", { className: verdict }, made("span", { className: "verdict" }, `${{ supported: "✓", contradicted: "✗", undecided: "?" }[verdict]} ${verdict}`),
    made("strong", {}, claim), made("span", {}, figure), made("span", { className: "soft" }, source));
}

function start() {
  const done = runs.filter((run) => run.state === "done").length;
  const seeds = distinct(runs.filter((run) => run.stage === "report").map((run) => run.seed)).length;
  at("about").textContent = [plural(entries.length, "row"), plural(tasks.length, "task"), models.length > 3 ? `${models.length} models` : models.join(", "),
    `${plural(seeds, "seed")} reported`, `${written.count(done)} of ${plural(runs.length, "run")} done`].join(" · ");
  at("version").textContent = data.version;
  at("scores-text").textContent = `Means over seeds ± half of their ${100 * data.level} % interval (Student's t); the best of the rows shown is bold. ` +
    `A row's name opens the configs of its runs.`;
  const counts = ["supported", "contradicted", "undecided"].map((name) => `${data.verdicts.filter((one) => one.verdict === name).length} ${name}`);
  at("counted").textContent = counts.join(" · ");
  at("verdicts").append(...data.verdicts.map(verdict));

  const used = { model: models, budget: budgets, task: tasks, published: distinct(published.map((one) => one.model)) };
  options("model", models, "all models");
  options("budget", budgets, "all budgets");
  options("task", tasks, averaged ? "all, averaged" : "all");
  options("published", used.published, "not shown");
  for (const [name, values] of Object.entries(used)) {
    form.querySelector(`.of-${name === "published" ? name : `${name}s`}`).hidden = values.length < (name === "published" ? 1 : 2);
  }
  const empty = { claims: !data.verdicts.length, differences: !intervals.length, rates: !ratesValues().length, losses: !lossesValues().length };
  for (const section of document.querySelectorAll("main section")) {
    section.hidden = Boolean(empty[section.id]);
    const name = section.querySelector("h2").textContent;
    if (!section.hidden) at("sections").append(made("li", {}, made("a", { href: `#${section.id}` }, name)));
  }
  form.addEventListener("input", read);
  form.addEventListener("reset", () => setTimeout(read));
  form.addEventListener("submit", (event) => event.preventDefault());
  read();
}

start();
