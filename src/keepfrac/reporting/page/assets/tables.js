// Tables that sort by their headings, and the runs without a result.

const ratio = (value) => (known(value) ? ` (${value.toFixed(2)}×)` : "");
const over = (ours, dense) => (known(ours) && dense ? ours / dense : null);
const column = (title, value, text, more) => ({ title, value, text: text || ((item) => brief(value(item))), ...more });

function signed(value) {
  return known(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4) : "–";
}

function differenceText({ difference }) {
  if (!difference) return "–";
  if (!known(difference.low)) return `${signed(difference.mean)} (1 pair)`;
  return `${signed(difference.mean)} [${signed(difference.low)}, ${signed(difference.high)}]`;
}

function sharedColumns() {
  const varying = [["task", "task"], ["model", "model"], ["setup", "setup"]].filter(([key]) => severalOf(key));
  return [
    column("method", (item) => item.series, null, { head: true }),
    column("keep", (item) => item.keep_asked, null, { numeric: true }),
    column("achieved", (item) => item.keep_achieved, (item) => fixed(item.keep_achieved), { numeric: true, title2: (item) => item.what }),
    ...varying.map(([key, title]) => column(title, (item) => item[key])),
  ];
}

function armColumns() {
  const metric = severalOf("metric") ? "score" : content.arms[0].metric;
  return [
    ...sharedColumns(),
    column("lr", (arm) => arm.lr, (arm) => rate(arm.lr) + (arm.lrs > 1 ? ` (${arm.chosen ? `of ${arm.lrs}` : "not chosen"})` : ""), { numeric: true }),
    column("n", (arm) => arm.test.n, null, { numeric: true }),
    column(`test ${metric}`, (arm) => arm.test.mean, (arm) => spread(arm.test, fixed), { numeric: true }),
    column("minus dense [95 %]", (arm) => (arm.difference ? arm.difference.mean : null), differenceText, { numeric: true }),
    column("saved (to dense)", (arm) => arm.cost.saved_bytes.mean, (arm) => bytes(arm.cost.saved_bytes.mean) + ratio(arm.saved_ratio), { numeric: true }),
    column("step (to dense)", (arm) => arm.cost.step_seconds.mean, (arm) => duration(arm.cost.step_seconds.mean) + ratio(arm.step_ratio), { numeric: true }),
    column("parameters", (arm) => arm.cost.params.mean, (arm) => count(arm.cost.params.mean), { numeric: true }),
  ];
}

function runColumns() {
  const metric = severalOf("metric") ? "score" : (content.runs[0] || {}).metric;
  return [
    ...sharedColumns(),
    column("lr", (run) => run.lr, (run) => rate(run.lr), { numeric: true }),
    column("seed", (run) => run.seed, null, { numeric: true }),
    column(`val ${metric}`, (run) => run.val_score, (run) => fixed(run.val_score), { numeric: true }),
    column(`test ${metric}`, (run) => run.test_score, (run) => fixed(run.test_score), { numeric: true }),
    column("saved (to dense)", (run) => run.saved_bytes, (run) => bytes(run.saved_bytes) + ratio(over(run.saved_bytes, run.saved_bytes_dense)), { numeric: true }),
    column("step (to dense)", (run) => run.step_seconds, (run) => duration(run.step_seconds) + ratio(over(run.step_seconds, run.step_seconds_dense)), { numeric: true }),
    column("command", (run) => run.command, null, { cell: commandCell }),
    column("training", (run) => run.train_seconds, (run) => duration(run.train_seconds), { numeric: true }),
    column("parameters", (run) => run.params, (run) => count(run.params), { numeric: true }),
    column("date", (run) => run.date),
  ];
}

function commandCell(run) {
  if (!run.command) return ["–"];
  return [element("div", { className: "command" }, copyButton(run.command, runName(run)), element("code", { title: run.command }, run.command))];
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sorted(items, { by, down }) {
  if (!by) return items;
  const filled = items.filter((item) => known(by.value(item)));
  filled.sort((a, b) => (down ? -1 : 1) * compare(by.value(a), by.value(b)));
  return [...filled, ...items.filter((item) => !known(by.value(item)))]; // what is not known stands last either way
}

function heading(each, sort, redraw) {
  const button = element("button", { type: "button" }, each.title, element("span", { className: "arrow", "aria-hidden": "true" }));
  button.addEventListener("click", () => {
    sort.down = sort.by === each ? !sort.down : false;
    sort.by = each;
    redraw();
    say(`Sorted by ${each.title}, ${sort.down ? "descending" : "ascending"}`);
  });
  return element("th", { scope: "col", className: each.numeric ? "number" : "" }, button);
}

function rowOf(item, columns, { runs, name }) {
  const own = runs(item);
  const box = element("input", { type: "checkbox", "aria-label": `Curves of ${name(item)}`, checked: own.every((one) => selected.includes(one)) });
  box.addEventListener("change", () => toggle(own, box.checked));
  const row = element("tr", {}, element("td", { className: "box" }, box));
  for (const each of columns) {
    const inner = each.cell ? each.cell(item) : [each.text(item)];
    if (each.head) inner.unshift(swatch(looks.get(item.series)));
    const cell = element(each.head ? "th" : "td", { className: each.numeric ? "number" : "" }, ...inner);
    if (each.head) Object.assign(cell, { scope: "row", title: item.series });
    if (each.title2) cell.title = each.title2(item);
    row.append(cell);
  }
  row.addEventListener("click", (event) => {
    if (event.target.closest("button, input, code") || String(getSelection())) return;
    select(own);
    showCurves();
  });
  return { row, box, own };
}

function sortingTable(section, items, columns, meaning) {
  const table = section.querySelector("table");
  const sort = { by: null, down: false };
  const body = element("tbody");
  let rows = [];
  const fill = () => {
    rows = sorted(items.filter(passes), sort).map((item) => rowOf(item, columns, meaning));
    body.replaceChildren(...rows.map(({ row }) => row));
    heads.forEach((head, place) => {
      const direction = sort.down ? "descending" : "ascending";
      head.setAttribute("aria-sort", sort.by === columns[place] ? direction : "none");
    });
    mark();
  };
  const mark = () => rows.forEach(({ row, box, own }) => {
    box.checked = own.every((one) => selected.includes(one));
    row.classList.toggle("on", box.checked);
  });
  const heads = columns.map((each) => heading(each, sort, fill));
  const corner = element("th", { scope: "col", className: "box" }, element("span", { className: "unseen" }, "Curves"));
  table.append(element("thead", {}, element("tr", {}, corner, ...heads)), body);
  listeners.filters.push(fill);
  listeners.selection.push(mark);
  fill();
  return fill;
}

function problemCard(problem) {
  const failed = ["failed", "unreadable"].includes(problem.status);
  const status = element("span", { className: failed ? "badge bad" : "badge" }, problem.status);
  return element("article", {},
    element("h3", {}, status, " ", problem.cell),
    problem.error ? element("p", { className: "error" }, problem.error) : null,
    problem.command ? element("div", { className: "command" }, element("code", {}, problem.command), copyButton(problem.command, problem.cell)) : null,
    problem.tail ? element("details", { open: content.problems.length < 4 }, element("summary", {}, "The end of its log"),
      element("pre", { tabIndex: 0, "aria-label": `The end of the log of ${problem.cell}` }, problem.tail)) : null);
}

function startProblems() {
  const fill = () => byId("problems").lastElementChild.replaceChildren(...content.problems.filter(passes).map(problemCard));
  byId("problems").hidden = !content.problems.length;
  listeners.filters.push(fill);
  fill();
}
