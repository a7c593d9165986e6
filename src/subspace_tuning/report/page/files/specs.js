// The charts as Vega-Lite specifications. Colours are those of the style sheet, so that they follow light and dark.

const colour = (name) => `var(--${name})`;
const PALETTE = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => colour(`line-${number}`));
const DASHES = PALETTE.map((_, number) => (number < 4 ? [1, 0] : [5, 3]));
const WIDEST = 24; // characters of a name in a chart
const words = {
  labelColor: colour("soft"), titleColor: colour("text"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
};
const THEME = {
  aria: false, // a chart is one image, and its table has the values
  background: "transparent",
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    ...words, labelLimit: 170, titlePadding: 8,
    gridColor: colour("line"), domainColor: colour("line"), tickColor: colour("line"),
  },
  legend: { ...words, labelLimit: 7 * WIDEST, symbolType: "stroke", symbolSize: 300 },
  header: { ...words, labelColor: colour("text"), labelFontWeight: 600, labelLimit: 220 },
};

const shared = (values) => ({ data: { values }, config: THEME });
const fitted = (width, height) => ({ width, height, autosize: { type: "fit", contains: "padding" } });
const tooltip = (...fields) => fields.map(([title, field]) => ({ title, field, type: "nominal" }));

/** A channel that tells values of a field apart, without a legend unless one is given. */
const telling = (field, domain, range, legend = null) => ({
  field, type: "nominal", title: null, legend, scale: { domain, range: range.slice(0, domain.length) },
});

/** A legend above the chart, in as many columns as the longest name leaves room for. */
function legendOf(names, room) {
  const longest = Math.min(WIDEST, Math.max(...names.map((name) => name.length)));
  return { orient: "top", columns: Math.max(1, Math.floor((room - 64) / (7 * longest + 40))) };
}

// Not a list of the values: Vega-Lite would write them into an expression, and they are anybody's texts.
const inOrder = { field: "order", op: "min" };

/** A panel for each value of a field, as many side by side as there is room for. */
function panels(values, field, room, least, spec) {
  const count = distinct(values.map((value) => value[field])).length;
  const columns = Math.max(1, Math.min(count, Math.floor(room / least)));
  const width = Math.floor((room - 64) / columns) - 22;
  const header = { labelAnchor: "start", labelPadding: 4 };
  return {
    ...shared(values.map((value, order) => ({ ...value, order }))), columns, spacing: { row: 14, column: 18 },
    facet: { field, type: "nominal", title: null, sort: inOrder, header },
    spec: { width, ...spec },
  };
}

function decades(least, most) {
  const found = [];
  for (let power = Math.ceil(Math.log10(least)); 10 ** power <= most; power += 1) found.push(Number(`1e${power}`));
  return found;
}

/** A logarithmic axis, with room at its ends; 0 is drawn half a decade below the smallest positive value. */
function logarithmic(values, field) {
  const positive = values.map((value) => value[field]).filter((x) => x > 0);
  const [least, most] = positive.length ? [Math.min(...positive), Math.max(...positive)] : [1, 1];
  const zero = values.some((value) => value[field] === 0) ? 10 ** (Math.floor(Math.log10(least)) - 0.5) : null;
  const domain = [(zero ?? least) / 1.6, most * 1.6];
  const ticks = decades(...domain);
  return {
    at: (x) => (x > 0 ? x : zero),
    scale: { type: "log", domain, nice: false },
    ticks: ticks.length > 1 ? [...(zero ? [zero] : []), ...ticks] : undefined,
    label: (format) => `datum.value === ${zero} ? '0' : format(datum.value, '${format}')`,
  };
}

const PLACES = ["on the line", "behind it"];

const HEIGHT = 340; // of a chart with one panel

/**
 * Choose the points on the line whose names have room, the best first, and the side of each name.
 *
 * No point is both cheaper and better than one on the line, so names stand there, or above the point at the left edge.
 */
function named(points, { domain }, width) {
  const [low, high] = domain.map(Math.log), scores = points.map(({ score }) => score);
  const least = Math.min(...scores), span = Math.max(...scores) - least || 1;
  const spots = [];
  for (const point of points.filter(({ front }) => front).reverse()) {
    const length = 7 * Math.min(point.label.length, WIDEST) + 10, end = (width * (Math.log(point.x) - low)) / (high - low);
    const side = end > length + 40 ? "right" : "center";
    const from = side === "right" ? end - length : end - length / 2, y = (HEIGHT * (point.score - least)) / span;
    if (spots.some((spot) => from < spot.from + spot.length && spot.from < from + length && Math.abs(spot.y - y) < 19)) continue;
    spots.push({ from, length, y });
    point.side = side;
  }
  return points;
}

/** The names at one side, each with a rim in the colour of the ground. */
const names = (points, side, dy) => !points.some((point) => point.side === side) ? [] : [{ stroke: colour("ground"), strokeWidth: 4, strokeJoin: "round" }, {}].map((rim) => ({
  transform: [{ filter: `datum.side === '${side}'` }],
  mark: {
    type: "text", align: side, dx: side === "right" ? -7 : 0, dy, fontSize: 12, limit: 7 * WIDEST,
    color: colour("text"), tooltip: null, ...rim,
  },
  encoding: { text: { field: "label" } },
}));

const bars = (score) => ({
  transform: [{ filter: "isValid(datum.low)" }],
  mark: { type: "rule", color: colour("soft"), opacity: 0.5 },
  encoding: { y: { field: "low", ...score }, y2: { field: "high" } },
});

/** Score against a cost, with a line through those that no other beats in both. */
function frontSpec(values, { field, title, format, better }, width, scored) {
  const { at, scale, ticks, label } = logarithmic(values, field);
  const placed = values.map((value) => ({ ...value, x: at(value[field]), place: PLACES[value.front ? 0 : 1] }));
  const points = named(placed, scale, width);
  const axis = { grid: false, values: ticks, labelOverlap: true, labelExpr: label(format) };
  const score = { type: "quantitative", title: scored, scale: { zero: false } };
  return {
    ...shared(points), ...fitted(width, HEIGHT),
    encoding: { x: { field: "x", type: "quantitative", title, scale, axis }, y: { field: "score", ...score } },
    layer: [
      ...(points.every(({ low }) => low === null) ? [] : [bars(score)]),
      {
        transform: [{ filter: "datum.front" }],
        mark: { type: "line", interpolate: "step-after", color: colour("accent"), opacity: 0.7, strokeWidth: 2 },
      },
      {
        mark: { type: "point", filled: true, opacity: 1, size: 70, cursor: "pointer" },
        encoding: {
          color: telling("place", PLACES, [colour("accent"), colour("soft")]),
          shape: telling("place", PLACES, ["diamond", "circle"]),
          tooltip: tooltip(["row", "label"], [title, "written"], [scored, "result"], ["seeds", "count"]),
        },
      },
      ...names(points, "right", better === "smaller" ? 11 : -9), ...names(points, "center", better === "smaller" ? 14 : -12),
    ],
  };
}

/** Score against learning rate, a panel per row and a line per task; the chosen rate has a larger mark. */
function ratesSpec(values, room) {
  const names = distinct(values.map((value) => value.task));
  const colours = names.map((_, n) => PALETTE[n % PALETTE.length]);
  const { scale, ticks } = logarithmic(values, "rate");
  const axis = { grid: false, format: "~e", values: ticks, labelOverlap: true };
  return panels(values, "label", room, 150, {
    height: 90,
    encoding: {
      x: { field: "rate", type: "quantitative", title: null, scale, axis },
      y: { field: "y", type: "quantitative", title: null, scale: { zero: false }, axis: { tickCount: 4 } },
      color: telling("task", names, colours, names.length > 1 ? legendOf(names, room) : null),
      detail: { field: "entry" },
    },
    layer: [
      { mark: { type: "line", strokeWidth: 1.5 } },
      {
        mark: { type: "point", filled: true, opacity: 1, cursor: "pointer" },
        encoding: {
          size: { condition: { test: "datum.chosen", value: 130 }, value: 24 },
          shape: { condition: { test: "datum.chosen", value: "diamond" }, value: "circle" },
          tooltip: tooltip(
            ["row", "label"], ["task", "task"], ["learning rate", "written"], ["score", "result"], ["chosen", "chosen"]),
        },
      },
    ],
  });
}

const OF_LOSS = {
  x: { field: "step", type: "quantitative", title: "step", axis: { grid: false, tickCount: 5 } },
  y: { field: "loss", type: "quantitative", title: "training loss", scale: { zero: false }, axis: { tickCount: 5 } },
};

/** Loss against the step, a panel per task and a line per row. */
function lossesSpec(values, room) {
  const names = distinct(values.map((value) => value.label));
  const legend = legendOf(names, room);
  return panels(values, "task", room, 340, {
    height: 220,
    mark: { type: "line", strokeWidth: 1.8, cursor: "pointer" },
    encoding: {
      ...OF_LOSS,
      color: telling("label", names, PALETTE, legend),
      strokeDash: telling("label", names, DASHES, legend),
      tooltip: tooltip(["row", "label"], ["task", "task"]),
    },
  });
}

/** The loss curve of one run. */
const lossSpec = (values, width) => ({
  ...shared(values), ...fitted(width, 150), mark: { type: "line", color: colour("accent") }, encoding: OF_LOSS,
});

/** Differences with their intervals, a panel per task. */
function forestSpec(values, room) {
  const axis = { ticks: false, domain: false, labelColor: colour("text"), labelLimit: 130, grid: true };
  const x = { type: "quantitative", title: "difference", axis: { tickCount: 4, labelOverlap: true, gridOpacity: 0.5 } };
  const color = telling("side", SIDES, [colour("good"), colour("bad"), colour("soft")]);
  const found = panels(values, "panel", room, room < 560 ? 330 : 250, {
    height: { step: 19 },
    encoding: { y: { field: "label", type: "nominal", title: null, sort: inOrder, axis } },
    layer: [
      { mark: { type: "rule", color: colour("text"), opacity: 0.7 }, encoding: { x: { datum: 0, ...x }, y: null } },
      { mark: { type: "rule", strokeWidth: 2 }, encoding: { x: { field: "low", ...x }, x2: { field: "high" }, color } },
      {
        mark: { type: "point", filled: true, opacity: 1, size: 60 },
        encoding: {
          x: { field: "difference", ...x }, color,
          shape: telling("side", SIDES, ["triangle-right", "triangle-left", "circle"]),
          tooltip: tooltip(["row", "label"], ["difference", "result"], ["baseline", "baseline"], ["verdict", "side"]),
        },
      },
    ],
  });
  return { ...found, resolve: { scale: { x: "independent" } } }; // tasks have metrics of their own
}
