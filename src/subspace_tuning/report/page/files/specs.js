// The charts as Vega-Lite specifications. Colours are those of the style sheet, so that they follow light and dark.

const colour = (name) => `var(--${name})`;
const PALETTE = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => colour(`line-${number}`));
const DASHES = PALETTE.map((_, number) => (number < 4 ? [1, 0] : [5, 3]));
const text = { labelColor: colour("soft"), titleColor: colour("text"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
const THEME = {
  background: "transparent",
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: { ...text, gridColor: colour("line"), domainColor: colour("line"), tickColor: colour("line"), labelLimit: 170, titlePadding: 8 },
  legend: { ...text, labelLimit: 260, symbolType: "stroke", symbolSize: 300 },
  header: { ...text, labelColor: colour("text"), labelFontWeight: 600, labelLimit: 220 },
};

const score = (title) => ({ field: "score", type: "quantitative", title, scale: { zero: false, nice: true } });
const axesOfLoss = {
  x: { field: "step", type: "quantitative", title: "step", axis: { grid: false, tickCount: 5 } },
  y: { field: "loss", type: "quantitative", title: "training loss", scale: { zero: false }, axis: { tickCount: 5 } },
};
const tooltip = (...fields) => fields.map(([title, field]) => ({ title, field, type: "nominal" }));
const shared = (values) => ({ data: { values }, config: THEME });

/** A panel for each value of a field, as many side by side as have room, each 90 to 110 high. */
function panels(values, field, room, least, spec) {
  const names = distinct(values.map((value) => value[field]));
  const columns = Math.max(1, Math.min(names.length, Math.floor(room / least)));
  const width = Math.floor((room - 64) / columns) - 22;
  return {
    ...shared(values), columns, spacing: { row: 14, column: 18 },
    facet: { field, type: "nominal", title: null, sort: names, header: { labelAnchor: "start", labelPadding: 4 } },
    spec: { width, ...spec },
  };
}

const decades = (least, most) => {
  const found = [];
  for (let power = Math.floor(Math.log10(least)); 10 ** power <= most; power += 1) found.push(Number(`1e${power}`));
  return found.filter((tick) => tick >= least);
};

/** A logarithmic axis, with room at its ends; 0 is drawn half a decade below the smallest positive value. */
function logarithmic(values, field) {
  const positive = values.map((value) => value[field]).filter((x) => x > 0);
  const [least, most] = positive.length ? [Math.min(...positive), Math.max(...positive)] : [1, 1];
  const zero = values.some((value) => value[field] === 0) ? 10 ** (Math.floor(Math.log10(least)) - 0.5) : null;
  const ends = [(zero ?? least) / 1.6, most * 1.6];
  const ticks = decades(...ends);
  return { at: (x) => (x > 0 ? x : zero), ends, zero, ticks: ticks.length > 1 ? [...(zero ? [zero] : []), ...ticks] : undefined };
}

/** Score against something that should be small, with the front of what no other row beats in both. */
function frontSpec(values, { field, title, format, better }, width, scoreTitle) {
  const axis = logarithmic(values, field);
  const points = values.map((value) => ({ ...value, x: axis.at(value[field]), where: value.front ? "on the front" : "behind it" }));
  const x = {
    field: "x", type: "quantitative", title, scale: { type: "log", domain: axis.ends, nice: false },
    axis: { grid: false, values: axis.ticks, labelOverlap: true, labelExpr: `datum.value === ${axis.zero} ? '0' : format(datum.value, '${format}')` },
  };
  const on = { filter: "datum.front" };
  return {
    ...shared(points), width, height: 320, autosize: { type: "fit", contains: "padding" },
    encoding: { x, y: score(scoreTitle) },
    layer: [
      { mark: { type: "rule", color: colour("soft"), opacity: 0.45 }, encoding: { y: { field: "low", type: "quantitative" }, y2: { field: "high" } } },
      { transform: [on], mark: { type: "line", interpolate: "step-after", color: colour("accent"), opacity: 0.7, strokeWidth: 2 } },
      {
        mark: { type: "point", filled: true, opacity: 1, size: 70, cursor: "pointer" },
        encoding: {
          color: { field: "where", type: "nominal", legend: null, scale: { domain: ["on the front", "behind it"], range: [colour("accent"), colour("soft")] } },
          shape: { field: "where", type: "nominal", legend: null, scale: { domain: ["on the front", "behind it"], range: ["diamond", "circle"] } },
          tooltip: tooltip(["row", "label"], [title, "written"], [scoreTitle, "result"], ["runs", "count"]),
        },
      },
      {
        transform: [on],
        mark: { type: "text", dy: better === "smaller" ? 13 : -11, align: "center", fontSize: 12, color: colour("text"), limit: 150 },
        encoding: { text: { field: "label" } },
      },
    ],
  };
}

/** Score against learning rate in the tuning runs, a panel per row and a line per task; the chosen rate has a mark. */
function ratesSpec(values, room) {
  const names = distinct(values.map((value) => value.task));
  const scale = { domain: names, range: names.map((_, n) => PALETTE[n % PALETTE.length]) };
  const legend = names.length > 1 ? { orient: "top", columns: Math.max(1, Math.floor(room / 110)) } : null;
  const color = { field: "task", type: "nominal", title: null, scale, legend };
  const chosen = (range) => ({ field: "chosen", type: "nominal", legend: null, scale: { domain: [true, false], range } });
  const { ends, ticks } = logarithmic(values, "rate");
  const axis = { grid: false, format: "~e", values: ticks, labelOverlap: true };
  return panels(values, "label", room, 180, {
    height: 90,
    encoding: {
      x: { field: "rate", type: "quantitative", title: null, scale: { type: "log", nice: false, domain: ends }, axis },
      y: { field: "y", type: "quantitative", scale: { zero: false }, axis: { tickCount: 4, title: null } },
      color, detail: { field: "entry" },
    },
    layer: [
      { mark: { type: "line", strokeWidth: 1.5 } },
      {
        mark: { type: "point", filled: true, opacity: 1, cursor: "pointer" },
        encoding: {
          size: chosen([130, 24]), shape: chosen(["diamond", "circle"]),
          tooltip: tooltip(["row", "label"], ["task", "task"], ["learning rate", "written"], ["score", "result"], ["chosen", "chosen"]),
        },
      },
    ],
  });
}

/** Loss against the step, a panel per task and a line per row. */
function lossesSpec(values, room) {
  const names = distinct(values.map((value) => value.label));
  const line = (range) => ({ field: "label", type: "nominal", title: null, scale: { domain: names, range: range.slice(0, names.length) } });
  const legend = { orient: "top", columns: Math.max(1, Math.floor(room / 160)) };
  return panels(values, "task", room, 340, {
    height: 220,
    mark: { type: "line", strokeWidth: 1.8, cursor: "pointer" },
    encoding: {
      ...axesOfLoss,
      color: { ...line(PALETTE), legend }, strokeDash: { ...line(DASHES), legend },
      tooltip: tooltip(["row", "label"], ["task", "task"]),
    },
  });
}

/** The loss curve of one run. */
function lossSpec(values, width) {
  const mark = { type: "line", strokeWidth: 1.8, color: colour("accent") };
  return { ...shared(values), width, height: 150, autosize: { type: "fit", contains: "padding" }, mark, encoding: axesOfLoss };
}

/** Paired differences with their intervals, a panel per task. */
function forestSpec(values, room) {
  const rows = distinct(values.map((value) => value.label));
  const sides = ["better", "worse", "not told apart"];
  const side = (range) => ({ field: "side", type: "nominal", title: null, scale: { domain: sides, range }, legend: null });
  const difference = { type: "quantitative", axis: { tickCount: 4, labelOverlap: true } };
  const color = side([colour("good"), colour("bad"), colour("soft")]);
  const found = panels(values, "panel", room, room < 560 ? 330 : 250, {
    height: { step: 19 },
    encoding: { y: { field: "label", type: "nominal", title: null, sort: rows, axis: { grid: true, ticks: false, domain: false, labelColor: colour("text"), labelLimit: 130 } } },
    layer: [
      { mark: { type: "rule", color: colour("text"), opacity: 0.7 }, encoding: { x: { datum: 0, ...difference, title: "difference" }, y: null } },
      { mark: { type: "rule", strokeWidth: 2 }, encoding: { x: { field: "low", ...difference, title: "difference" }, x2: { field: "high" }, color } },
      {
        mark: { type: "point", filled: true, opacity: 1, size: 60 },
        encoding: {
          x: { field: "difference", ...difference, title: "difference" },
          color, shape: side(["triangle-right", "triangle-left", "circle"]),
          tooltip: tooltip(["row", "label"], ["difference", "result"], ["baseline", "baseline"], ["verdict", "side"]),
        },
      },
    ],
  });
  return { ...found, resolve: { scale: { x: "independent" } } }; // tasks have metrics of their own
}
