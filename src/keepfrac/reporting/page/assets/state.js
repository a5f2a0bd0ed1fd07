// The content of the page and what its reader chose: filters and runs.

const content = JSON.parse(byId("content").textContent);
const runOf = new Map(content.runs.map((run) => [run.identity, run]));
const looks = seriesLooks(content.arms);
const FILTERS = [["task", "Task"], ["method", "Method"], ["model", "Model"]];
const chosen = new Map(FILTERS.map(([key]) => [key, new Set()])); // an empty set lets everything through
let selected = []; // identities of the runs whose curves are shown, in order of choice
const listeners = { filters: [], selection: [] };
const tell = (what) => listeners[what].forEach((listener) => listener());

const valuesOf = (key) => [...new Set(content.runs.concat(content.problems).map((item) => item[key]))].filter(known).sort();
const severalOf = (key) => new Set(content.runs.map((run) => run[key])).size > 1;

// What is not known of a run that failed early hides it from no one.
function passes(item) {
  return FILTERS.every(([key]) => !chosen.get(key).size || !known(item[key]) || chosen.get(key).has(item[key]));
}

const groupOf = (item) => JSON.stringify([item.task, item.model, item.setup, item.metric]);
const groupName = (item) => [item.task, item.model, item.setup].filter(Boolean).join(", ");

function runName(run) {
  const parts = [run.series];
  if (known(run.keep_asked)) parts.push(`keep ${run.keep_asked}`);
  if (severalOf("lr")) parts.push(`lr ${rate(run.lr)}`);
  parts.push(`seed ${brief(run.seed)}`);
  for (const key of ["task", "model", "setup"]) if (severalOf(key) && run[key]) parts.push(run[key]);
  return parts.join(", ");
}

function select(identities) {
  selected = [...new Set(identities)];
  say(selected.length ? `${plural(selected.length, "run")} shown under Curves` : "No run chosen");
  tell("selection");
}

function toggle(identities, on) {
  select(on ? [...selected, ...identities] : selected.filter((identity) => !identities.includes(identity)));
}

function choices(fieldset, name, options, isOn, set) {
  for (const [value, label] of options) {
    const box = element("input", { type: "checkbox", name, value, checked: isOn(value) });
    box.addEventListener("change", () => set(value, box.checked));
    fieldset.append(element("label", {}, box, element("span", {}, label)));
  }
  return fieldset;
}

function startFilters() {
  const form = byId("filters");
  const result = element("output", { id: "shown" });
  const reset = element("button", { type: "reset" }, "Show all");
  for (const [key, title] of FILTERS) {
    const values = valuesOf(key);
    if (values.length < 2) continue;
    const fieldset = element("fieldset", { className: "choices" }, element("legend", {}, title));
    const set = (value, on) => {
      chosen.get(key)[on ? "add" : "delete"](value);
      tell("filters");
    };
    form.append(choices(fieldset, key, values.map((value) => [value, value]), () => false, set));
  }
  if (!form.children.length) return;
  form.append(element("div", { className: "choices" }, result, reset));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    chosen.forEach((values) => values.clear());
    tell("filters");
  });
  const report = () => {
    result.textContent = `${content.runs.filter(passes).length} of ${plural(content.runs.length, "run")}`;
    reset.disabled = [...chosen.values()].every((values) => !values.size);
  };
  listeners.filters.push(report);
  report();
}
