// What the chosen runs logged by step, two metrics side by side.

const shownMetric = [null, null]; // null: the usual one

// The first run of a series has the series' colour; further ones take those that no chosen series has.
function runLooks() {
  const colours = COLOURS[theme()];
  const series = new Set(selected.map((identity) => colourOf(looks.get(runOf.get(identity).series))));
  const spare = [...colours.filter((colour) => !series.has(colour)), ...colours.filter((colour) => series.has(colour))];
  const taken = new Set();
  return selected.map((identity, place) => {
    const own = colourOf(looks.get(runOf.get(identity).series));
    const free = spare.find((colour) => !taken.has(colour) && !series.has(colour));
    const colour = taken.has(own) ? free || spare[place % spare.length] : own;
    taken.add(colour);
    return { colour, dash: DASHES[Math.floor(place / colours.length) % DASHES.length] };
  });
}

function usualMetric(side, metrics) {
  const run = runOf.get(selected[0]);
  const wanted = side === 0 ? ["train/loss", "loss/task"] : [`val/${run.metric}`, "val/loss"];
  return wanted.find((name) => metrics.includes(name)) || metrics[Math.min(side, metrics.length - 1)];
}

function drawPlot(side, metrics, styles) {
  const box = byId(`plot-${side}`);
  const picker = byId(`metric-${side}`);
  const metric = metrics.includes(shownMetric[side]) ? shownMetric[side] : usualMetric(side, metrics);
  picker.replaceChildren(...metrics.map((name) => element("option", { value: name, selected: name === metric }, name)));
  const traces = selected.map((identity, place) => {
    const run = runOf.get(identity);
    const [x, y] = run.curves[metric] || [[], []];
    return {
      x,
      y,
      mode: x.length > 40 ? "lines" : "lines+markers",
      line: { color: styles[place].colour, dash: styles[place].dash, width: x.length > 40 ? 1.6 : 2 },
      marker: { size: x.length === 1 ? 10 : 6, symbol: looks.get(run.series).marker },
      hovertext: x.map((step, at) => `<b>${plain(runName(run))}</b><br>step ${step}: ${known(y[at]) ? Number(y[at].toPrecision(5)) : "not finite"}`),
      hoverinfo: "text",
      name: plain(runName(run)),
    };
  });
  const drawnRuns = traces.filter((trace) => trace.x.length).length;
  box.setAttribute("aria-label", `${metric} by step of ${plural(drawnRuns, "run")}`);
  const layout = plotLayout("step", metric);
  layout.yaxis.range = rangeOf(traces.flatMap((trace) => trace.y));
  draw(box, traces, layout);
}

function chosenItem(identity, style) {
  const run = runOf.get(identity);
  const remove = element("button", { type: "button", "aria-label": `Leave out ${runName(run)}` }, "×");
  remove.addEventListener("click", () => {
    toggle([identity], false);
    (byId("chosen").querySelector("button:not(.copy)") || byId("curves")).focus();
  });
  const facts = Object.entries({ ...run.scores, device: run.device, precision: run.precision, torch: run.torch,
    commit: run.commit, identity: run.identity, folder: run.cell, "kept of": run.what, ...run.settings });
  const list = element("dl", {}, ...facts.filter(([, value]) => known(value)).flatMap(
    ([key, value]) => [element("dt", {}, key), element("dd", {}, String(value))]));
  return element("li", {},
    element("div", { className: "run" }, element("strong", {}, dashSwatch(style.colour, style.dash), runName(run)),
      element("span", { className: "soft" }, `test ${run.metric} ${fixed(run.test_score)}`),
      element("span", { className: "acts" }, run.command ? copyButton(run.command, runName(run)) : null, remove)),
    element("code", {}, run.command || "no command was recorded"),
    element("details", {}, element("summary", {}, "Settings and scores"), list),
    run.examples.length ? exampleTexts(run) : null);
}

function exampleTexts(run) {
  const items = run.examples.map(({ meaning, generated, references }) => element("li", {},
    element("p", {}, element("code", {}, meaning)),
    element("p", {}, element("strong", {}, generated || "(nothing)")),
    ...references.map((text) => element("p", { className: "soft" }, text))));
  return element("details", { className: "examples" },
    element("summary", {}, `What it says of ${plural(items.length, "meaning")} of the test set`), element("ol", {}, ...items));
}

function drawCurves() {
  const styles = selected.length ? runLooks() : [];
  byId("chosen").replaceChildren(...selected.map((identity, place) => chosenItem(identity, styles[place])));
  const metrics = [...new Set(selected.flatMap((identity) => Object.keys(runOf.get(identity).curves)))].sort();
  byId("plots").hidden = !metrics.length;
  byId("curves-hint").hidden = metrics.length > 0;
  byId("clear").hidden = !selected.length;
  if (selected.length && !metrics.length) byId("curves-hint").textContent = "These runs left no curves.";
  if (metrics.length) [0, 1].forEach((side) => drawPlot(side, metrics, styles));
}

function showCurves() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("curves").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

function startCurves() {
  [0, 1].forEach((side) => {
    const picker = element("select", { id: `metric-${side}`, "aria-label": `Metric of the ${side ? "second" : "first"} plot` });
    picker.addEventListener("change", () => {
      shownMetric[side] = picker.value;
      drawCurves();
    });
    byId("plots").append(element("div", {}, picker, element("div", { id: `plot-${side}`, className: "plot", role: "img" })));
  });
  byId("clear").addEventListener("click", () => {
    select([]);
    byId("curves").focus();
  });
  byId("curves").hidden = !content.runs.length;
  listeners.selection.push(drawCurves);
}
