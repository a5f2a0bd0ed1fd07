// Elements, numbers as text, copying. Values reach the page as text nodes and never as markup.

const byId = (id) => document.getElementById(id);

function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// plotly reads <b>, <a> and entities in its texts: what comes from the content is shown as it is.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

const known = (value) => value !== null && value !== undefined;
const fixed = (value, digits = 4) => (known(value) ? value.toFixed(digits) : "–");
const brief = (value) => (known(value) ? String(value) : "–");

function rate(value) {
  if (!known(value)) return "–";
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : String(value);
}

function scaled(value, steps, base) {
  if (!known(value)) return "–";
  let place = 0;
  while (place < steps.length - 1 && Math.abs(value) >= base) {
    value /= base;
    place += 1;
  }
  const digits = place === 0 ? 0 : value < 10 ? 2 : 1;
  return value.toFixed(digits) + steps[place];
}

const bytes = (value) => scaled(value, [" B", " KiB", " MiB", " GiB"], 1024);
const count = (value) => scaled(value, ["", " k", " M", " G"], 1000);

function duration(value) {
  if (!known(value)) return "–";
  if (value < 1) return `${Number((value * 1000).toPrecision(3))} ms`;
  if (value < 120) return `${Number(value.toPrecision(3))} s`;
  return value < 7200 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

function spread(sample, form) {
  if (!known(sample.mean)) return "–";
  return form(sample.mean) + (known(sample.sd) ? ` ± ${form(sample.sd)}` : "");
}

const plural = (number, one, many) => `${number} ${number === 1 ? one : many || one + "s"}`;

function say(text) {
  byId("said").textContent = text;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { value: text, className: "unseen" }); // browsers without leave to the clipboard
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (focused) focused.focus();
    return done;
  }
}

function copyButton(text, of) {
  const button = element("button", { type: "button", className: "copy", "aria-label": `Copy the command of ${of}` }, "Copy");
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const done = await copy(text);
    button.textContent = done ? "Copied" : "Not copied";
    say(done ? `Copied the command of ${of}` : "The browser did not let the page copy");
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  return button;
}
