// Colours, markers and the theme. Two series differ by marker too, so that no one needs the colours.

// Okabe and Ito's colours; lighter ones of the same order on a dark ground.
const COLOURS = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98900", "#56b4e9"],
  dark: ["#4ea3e6", "#f2884b", "#2fc79a", "#e79bc6", "#f0c44c", "#a5dcfa"],
};
const DENSE = { light: "#1f2328", dark: "#f0f3f6" };
const MARKERS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "cross", "x"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SHAPES = {
  circle: "M1.5 7a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z",
  square: "M2 2h10v10h-10z",
  "triangle-up": "M7 1.5l6 10.5h-12z",
  diamond: "M7 .5l6 6.5l-6 6.5l-6 -6.5z",
  "triangle-down": "M7 12.5l6 -10.5h-12z",
  pentagon: "M7 1l6 4.5l-2.3 7h-7.4l-2.3 -7z",
  cross: "M5 1.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
  x: "M3.6 1.2l3.4 3.4l3.4 -3.4l2.4 2.4l-3.4 3.4l3.4 3.4l-2.4 2.4l-3.4 -3.4l-3.4 3.4l-2.4 -2.4l3.4 -3.4l-3.4 -3.4z",
  star: "M7 .5l2 4.4l4.8 .5l-3.6 3.2l1 4.7l-4.2 -2.4l-4.2 2.4l1 -4.7l-3.6 -3.2l4.8 -.5z",
};

const wantsDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;
const theme = () => chosenTheme || (wantsDark.matches ? "dark" : "light");
const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function seriesLooks(arms) {
  const looks = new Map();
  let place = 0;
  for (const arm of arms) {
    if (looks.has(arm.series)) continue;
    if (arm.dense) looks.set(arm.series, { colour: null, marker: "star" });
    else looks.set(arm.series, { colour: place % COLOURS.light.length, marker: MARKERS[place++ % MARKERS.length] });
  }
  return looks;
}

const colourOf = (look) => (look.colour === null ? DENSE[theme()] : COLOURS[theme()][look.colour]);

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function swatch(look) {
  const picture = svg("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true", class: "swatch" });
  picture.append(svg("path", { d: SHAPES[look.marker], fill: colourOf(look) }));
  return picture;
}

function dashSwatch(colour, dash) {
  const pattern = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" }[dash];
  const picture = svg("svg", { viewBox: "0 0 30 10", width: 30, height: 10, "aria-hidden": "true", class: "swatch" });
  const line = svg("line", { x1: 1, y1: 5, x2: 29, y2: 5, stroke: colour, "stroke-width": 3 });
  line.setAttribute("stroke-dasharray", pattern);
  picture.append(line);
  return picture;
}

function plotLayout(xTitle, yTitle) {
  const axis = (title) => ({
    title: { text: plain(title), standoff: 8 },
    gridcolor: tint("line"),
    linecolor: tint("line"),
    zeroline: false,
    automargin: true,
    nticks: 6,
  });
  return {
    height: 300,
    margin: { l: 56, r: 14, t: 10, b: 46 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: tint("ink") },
    hoverlabel: { align: "left", bgcolor: tint("card"), bordercolor: tint("edge"), font: { color: tint("ink") } },
    hovermode: "closest",
    showlegend: false,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    xaxis: axis(xTitle),
    yaxis: axis(yTitle),
  };
}

// With room around it; what is nearly one value is not blown up to fill the axis.
function rangeOf(values) {
  const finite = values.filter((value) => known(value) && Number.isFinite(value));
  if (!finite.length) return undefined;
  const least = Math.min(...finite);
  const most = Math.max(...finite);
  const room = Math.max((most - least) * 0.12, 0.01 * Math.max(Math.abs(least), Math.abs(most)), 1e-9);
  return [least - room, most + room];
}

const PLOT_CONFIG = { displaylogo: false, displayModeBar: false };
const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => target.data && Plotly.Plots.resize(target)));

function draw(box, traces, layout) {
  Plotly.react(box, traces, layout, PLOT_CONFIG);
  widths.observe(box);
}

function startTheme(redraw) {
  const button = byId("theme");
  const apply = () => {
    document.documentElement.dataset.theme = theme();
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show in ${theme() === "dark" ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => {
    chosenTheme = theme() === "dark" ? "light" : "dark";
    apply();
    redraw();
  });
  wantsDark.addEventListener("change", () => {
    apply();
    redraw();
  });
  apply();
}
