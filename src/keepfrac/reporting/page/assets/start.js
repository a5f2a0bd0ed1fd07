// Everything in its place; the tables do not wait for plotly.

function summary() {
  const parts = [plural(content.runs.length, "finished run")];
  for (const [key, title] of FILTERS) {
    const values = valuesOf(key);
    parts.push(values.length === 1 ? values[0] : plural(values.length, title.toLowerCase()));
  }
  const dates = content.runs.map((run) => run.date).filter(known).sort();
  if (dates.length) parts.push(dates[0] === dates[dates.length - 1] ? dates[0] : `${dates[0]} to ${dates[dates.length - 1]}`);
  const line = byId("summary");
  line.append(parts.join(" · "));
  if (content.problems.length) {
    line.append(" · ", element("a", { href: "#problems", className: "bad" }, `${content.problems.length} without a result`));
  }
}

async function unpack(packed) {
  const raw = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function loadPlotly() {
  const holder = byId("plotly");
  const script = element("script", { textContent: await unpack(holder.textContent) });
  document.head.append(script); // runs at once, by its hash
  holder.remove();
}

async function start() {
  const refills = [];
  let ready = false;
  startTheme(() => {
    refills.forEach((refill) => refill());
    if (ready) drawFronts();
    if (ready) drawCurves();
  });
  summary();
  startFilters();
  if (content.arms.length) {
    byId("means").hidden = false;
    const meaning = { runs: (arm) => arm.runs, name: (arm) => `${arm.series}, keep ${brief(arm.keep_asked)}, all seeds` };
    refills.push(sortingTable(byId("means"), content.arms, armColumns(), meaning));
  }
  const meaning = { runs: (run) => [run.identity], name: runName };
  refills.push(sortingTable(byId("runs"), content.runs, runColumns(), meaning));
  byId("runs").hidden = !content.runs.length;
  startProblems();
  byId("notes").hidden = !content.notes.length;
  byId("notes").querySelector("ul").append(...content.notes.map((note) => element("li", {}, note)));
  if (!content.runs.length) return;
  await loadPlotly();
  ready = true;
  startFronts();
  startCurves();
}

start().then(
  () => (document.documentElement.dataset.state = "ready"),
  (error) => {
    document.documentElement.dataset.state = "broken";
    byId("summary").append(" · the pictures cannot be drawn by this browser: ", String(error));
    throw error;
  });
