// Score against cost: a panel for each group of comparable arms and each cost, with the front of those shown.

const COSTS = [
  { key: "saved_bytes", title: "bytes kept for backward", axis: "bytes kept for the backward pass (MiB)", form: bytes, unit: 2 ** 20 },
  { key: "step_seconds", title: "step time", axis: "time of a training step (ms)", form: duration, unit: 1e-3 },
  { key: "latency_seconds", title: "latency", axis: "inference: a forward pass, batch 1, length 128 (ms)", form: duration, unit: 1e-3 },
  { key: "params", title: "parameters", axis: "parameters (millions)", form: count, unit: 1e6 },
  { key: "nonzeros", title: "nonzero parameters", axis: "nonzero parameters (millions)", form: count, unit: 1e6 },
  { key: "peak_bytes", title: "peak memory", axis: "peak memory in training (MiB)", form: bytes, unit: 2 ** 20 },
];
const axesOn = new Set();
const LABELS = ["top right", "bottom right", "top left", "bottom left"]; // neighbours of two series do not overprint
const drawn = []; // the panels that stand

const costsOf = (cost) => content.arms.map((arm) => arm.cost[cost.key].mean).filter(known);
const differ = (values) => values.length > 1 && Math.max(...values) > 1.01 * Math.min(...values);

// The arms that no other beats in both: from the cheapest on, each that scores better than all cheaper ones.
function frontOf(points, direction) {
  const sign = direction === "min" ? -1 : 1;
  const sorted = [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y));
  const front = [];
  for (const point of sorted) {
    if (!front.length || sign * point.y > sign * front[front.length - 1].y) front.push(point);
  }
  return front;
}

function pointsOf(arms, cost) {
  return arms
    .filter((arm) => known(arm.test.mean) && known(arm.cost[cost.key].mean))
    .map((arm) => ({ arm, x: arm.cost[cost.key].mean / cost.unit, y: arm.test.mean }));
}

function hoverText(arm, cost) {
  const keep = known(arm.keep_asked) ? ` · keep ${arm.keep_asked}` : "";
  const lines = [
    `<b>${plain(arm.series)}</b>${keep}`,
    `test ${plain(arm.metric)} ${spread(arm.test, fixed)} (${plural(arm.test.n, "seed")})`,
    `${cost.title} ${spread(arm.cost[cost.key], cost.form)}`,
  ];
  if (known(arm.lr)) lines.push(`lr ${rate(arm.lr)}`);
  return [...lines, "<i>click for its curves</i>"].join("<br>");
}

function seriesTrace(series, points, front, cost) {
  const look = looks.get(series);
  const colour = colourOf(look);
  const bars = (values) => ({ type: "data", array: values, visible: values.some(known), color: colour, thickness: 1.3, width: 4 });
  const own = points.filter((point) => point.arm.series === series).sort((a, b) => a.x - b.x);
  return {
    x: own.map((point) => point.x),
    y: own.map((point) => point.y),
    error_y: bars(own.map((point) => point.arm.test.sd)),
    error_x: bars(own.map(({ arm }) => (arm.cost[cost.key].sd ? arm.cost[cost.key].sd / cost.unit : null))),
    customdata: own.map((point) => point.arm.runs),
    hovertext: own.map((point) => hoverText(point.arm, cost)),
    hoverinfo: "text",
    mode: "markers+text",
    text: own.map((point) => (point.arm.dense ? "" : plain(brief(point.arm.keep_asked)))),
    textposition: LABELS[[...looks.keys()].indexOf(series) % LABELS.length],
    textfont: { size: 11, color: tint("soft") },
    marker: {
      symbol: own.map((point) => (front.includes(point) ? look.marker : `${look.marker}-open`)),
      size: look.marker === "star" ? 14 : 11,
      color: colour,
      line: { width: 2, color: colour },
    },
    name: plain(series),
    cliponaxis: false,
  };
}

function frontTrace(front, points) {
  const last = Math.max(...points.map((point) => point.x));
  const end = front[front.length - 1];
  return {
    x: [...front.map((point) => point.x), last],
    y: [...front.map((point) => point.y), end.y],
    mode: "lines",
    line: { shape: "hv", width: 7, color: tint("front") },
    hoverinfo: "skip",
    name: "front",
  };
}

function drawPanel(box, arms, cost) {
  const points = pointsOf(arms, cost);
  const direction = arms[0].direction;
  const front = frontOf(points, direction);
  const series = [...new Set(points.map((point) => point.arm.series))];
  const traces = [frontTrace(front, points), ...series.map((name) => seriesTrace(name, points, front, cost))];
  const better = direction === "min" ? "lower is better" : "higher is better";
  box.setAttribute("aria-label", `test ${arms[0].metric} against ${cost.title}: ${plural(points.length, "point")}, ` +
    `${front.length} on the front, ${better}; the table of means has the numbers`);
  const layout = plotLayout(cost.axis, `test ${arms[0].metric}`);
  layout.yaxis.range = rangeOf(points.flatMap(({ arm, y }) => [y - (arm.test.sd || 0), y + (arm.test.sd || 0)]));
  layout.xaxis.range = rangeOf(points.map(({ x }) => x));
  draw(box, traces, layout);
  box.removeAllListeners("plotly_click");
  box.on("plotly_click", (event) => {
    const runs = event.points.flatMap((point) => point.customdata || []);
    if (runs.length) select(event.event.shiftKey || event.event.ctrlKey ? [...selected, ...runs] : runs);
    if (runs.length) showCurves();
  });
}

function drawFronts() {
  const arms = content.arms.filter(passes);
  const holder = byId("panels");
  for (const { box } of drawn) {
    widths.unobserve(box);
    Plotly.purge(box);
  }
  drawn.length = 0;
  holder.replaceChildren();
  for (const group of new Set(arms.map(groupOf))) {
    const members = arms.filter((arm) => groupOf(arm) === group);
    const row = element("div", { className: "panels" });
    holder.append(element("h3", {}, groupName(members[0])), row);
    for (const cost of COSTS.filter(({ key }) => axesOn.has(key))) {
      if (!pointsOf(members, cost).length) continue;
      const box = element("div", { className: "plot", role: "img" });
      row.append(box);
      drawn.push({ box, members, cost });
    }
    if (!row.children.length) row.append(element("p", { className: "hint" }, "Not measured for these runs."));
  }
  if (!arms.length) holder.append(element("p", { className: "hint" }, "No run is left by the filters."));
  for (const { box, members, cost } of drawn) drawPanel(box, members, cost); // all in place: their widths are final
  drawLegend(arms);
}

function drawLegend(arms) {
  const names = [...new Set(arms.map((arm) => arm.series))];
  const dense = new Set(arms.filter((arm) => arm.dense).map((arm) => arm.series));
  byId("legend").replaceChildren(
    ...names.map((name) => element("li", {}, swatch(looks.get(name)), name + (dense.has(name) ? " (dense)" : ""))));
}

function startFronts() {
  const measured = COSTS.filter((cost) => costsOf(cost).length);
  if (!measured.length || !content.arms.some((arm) => known(arm.test.mean))) return;
  const telling = measured.filter((cost) => differ(costsOf(cost)));
  for (const cost of telling.length ? telling : measured.slice(0, 1)) axesOn.add(cost.key);
  const set = (key, on) => {
    axesOn[on ? "add" : "delete"](key);
    drawFronts();
  };
  choices(byId("axes"), "axis", measured.map(({ key, title }) => [key, title]), (key) => axesOn.has(key), set);
  const spreads = content.arms.some((arm) => known(arm.test.sd));
  byId("fronts-hint").textContent = "The band is the front of the means: filled markers lie on it, hollow ones are beaten " +
    "in both. The number beside a marker is keep. " + (spreads ? "Bars are one sd over seeds." : "One seed: the spread is not known.") +
    (telling.length < measured.length ? " A cost that is the same for all starts switched off." : "") +
    " Click a marker for its curves, with Shift to add them; drag to zoom, double-click to zoom out.";
  byId("fronts").hidden = false;
  listeners.filters.push(drawFronts);
  drawFronts();
}
