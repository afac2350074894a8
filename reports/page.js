const D = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const GRID_ROWS = 60, GRID_COLUMNS = 40, POINTS = 400, CELLS = 256, LISTED = 50, NOT_FINITE = "not finite";
const DISTANCES = ["nats", ""]; // units of what spans orders of magnitude
const SIGNS = { passed: "✓", failed: "✗", infra: "?", "expected-failure": "≈", skipped: "–" };
const GRAPHS = ["decode", "prefill", "prefill_all"];

// Text from records reaches the page as text alone: by this function, or escaped for the table.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function escaped(text) {
  return String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
}

const whole = new Intl.NumberFormat("en"), four = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
function words(value, unit) {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  if (unit === "share") return value.toFixed(4);
  if (Number.isInteger(value)) return whole.format(value);
  if (DISTANCES.includes(unit) && Math.abs(value) < .1) return value.toExponential(1);
  return Math.abs(value) < 1e4 ? four.format(value) : whole.format(value);
}

const cases = D.cases.map(([run, id, graph, chunk, quantization, variant, outcome, values, records, command], index) => ({
  index, run, id, graph, chunk, quantization, variant, outcome, command,
  name: id || "(no graph)",
  figures: Object.fromEntries(D.figures.map((figure, i) => [figure.name, values[i]])),
  records: records.map(([check, outcome, stage, message, bmodel, expected, shape, values, positions, kl]) => ({
    check: D.texts[check], outcome, stage, message: D.texts[message], bmodel: D.texts[bmodel], expected, shape, values, positions, curve: kl,
  })),
}));
for (const one of cases) {
  one.key = `${D.runs[one.run].id}/${one.id}`;
  one.column = one.chunk === null || one.graph === "decode" ? one.graph : `${one.graph} ${one.chunk}`;
  one.link = "#" + encodeURIComponent(one.key);
  one.text = [one.key, D.runs[one.run].checkpoint, one.outcome, ...one.records.map(r => `${r.check} ${r.message}`)].join("\n").toLowerCase();
}
const byKey = new Map(cases.map(one => [one.key, one]));
function metric(record, name) {
  const at = D.shapes[record.shape].findIndex(number => D.metrics[number][0] === name);
  return at < 0 ? null : record.values[at];
}

// ---- filter
let visible = cases, isVisible = new Uint8Array(cases.length).fill(1);
const filters = byId("filters");
function choices(select, what, values) {
  select.append(new Option(`all ${what}`, ""), ...values.map(([value, label]) => new Option(label, value)));
  select.hidden = values.length < 2;
}
const distinct = values => [...new Set(values)];
choices(byId("by-run"), "runs", D.runs.map((run, i) => [String(i), `${i + 1}: ${run.id}`]));
choices(byId("by-graph"), "graphs", distinct(cases.filter(c => GRAPHS.includes(c.graph)).map(c => c.graph)).map(g => [g, g]));
choices(byId("by-quantization"), "precisions", distinct(cases.map(c => c.quantization)).filter(Boolean).map(q => [q, q]));
choices(byId("by-outcome"), "outcomes", D.outcomes.filter(o => cases.some(c => c.records.some(r => r.outcome === o))).map(o => [o, o]));

function applyFilter() {
  const wanted = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [run, graph, quantization, outcome] = ["run", "graph", "quantization", "outcome"].map(name => byId(`by-${name}`).value);
  visible = cases.filter(one =>
    (!run || one.run === Number(run)) && (!graph || one.graph === graph) && (!quantization || one.quantization === quantization) &&
    (!outcome || one.records.some(record => record.outcome === outcome)) && wanted.every(word => one.text.includes(word)));
  isVisible.fill(0);
  for (const one of visible) isVisible[one.index] = 1;
  byId("count").textContent = visible.length === cases.length ? `${whole.format(cases.length)} cases` :
    `${whole.format(visible.length)} of ${whole.format(cases.length)} cases`;
  paintFailures(); paintGrid(); table.draw(); plotSoon();
}
filters.addEventListener("input", applyFilter);
filters.addEventListener("reset", () => setTimeout(applyFilter));
filters.addEventListener("submit", event => event.preventDefault());

// ---- what failed
function runPrefix(one) { return D.runs.length > 1 ? `run ${one.run + 1}: ` : ""; }
function paintFailures() {
  const found = visible.flatMap(one => one.records.filter(r => r.outcome === "failed" || r.outcome === "infra").map(r => [one, r]));
  byId("failures-section").hidden = !found.length;
  byId("failures").replaceChildren(...found.slice(0, LISTED).map(([one, record]) => element("li", {},
    element("span", { class: `state ${record.outcome}` }, record.outcome + (record.stage ? ` at ${record.stage}` : "")), " ", runPrefix(one),
    element("a", { href: one.link }, one.name), ` ${record.check}`, ...(record.message ? [element("pre", {}, record.message)] : []))));
  byId("failures-note").textContent = found.length > LISTED ? `The first ${LISTED} of ${whole.format(found.length)}; a filter shows others.` : "";
}

// ---- grid
choices(byId("shown"), "", []);
byId("shown").hidden = false;
byId("shown").replaceChildren(new Option("outcome and checks passed", ""),
  ...D.figures.filter(f => cases.some(c => c.figures[f.name] !== null)).map(f => new Option(`${f.group}: ${f.label}${f.unit && f.unit !== "share" ? `, ${f.unit}` : ""}`, f.name)));
byId("shown").addEventListener("change", () => paintGrid());

function rowName(one) {
  const parts = [];
  if (D.runs.length > 1) parts.push(`${one.run + 1}`);
  parts.push(D.runs[one.run].checkpoint);
  return [parts.join(" · "), [one.quantization, variants > 1 ? one.variant : ""].filter(Boolean).join(" ")];
}
const variants = new Set(cases.filter(c => c.id).map(c => c.variant)).size;
for (const one of cases) one.row = JSON.stringify(rowName(one));
const columnRank = one => [(GRAPHS.indexOf(one.graph) + 4) % 4, one.chunk ?? 0, one.graph];
function compared(a, b) {
  for (let i = 0; i < a.length; i++) { if (a[i] < b[i]) return -1; if (a[i] > b[i]) return 1; }
  return 0;
}

function paintGrid() {
  const graphs = visible.filter(one => one.id), columns = new Map(), rows = new Map();
  for (const one of graphs) {
    const { column, row } = one;
    if (!columns.has(column)) columns.set(column, columnRank(one));
    if (!rows.has(row)) { const [place, precision] = rowName(one); rows.set(row, { place, precision, cells: new Map() }); }
    const cells = rows.get(row).cells;
    if (!cells.has(column)) cells.set(column, one);
  }
  const allColumns = [...columns.keys()].sort((a, b) => compared(columns.get(a), columns.get(b)));
  const shownColumns = allColumns.slice(0, GRID_COLUMNS), shownRows = [...rows.values()].slice(0, GRID_ROWS);
  const figure = D.figures.find(f => f.name === byId("shown").value);
  const heat = figure && heatOf(graphs, figure);
  const head = element("tr", {}, element("th"), ...shownColumns.map(name => element("th", { scope: "col" }, name)));
  const body = shownRows.map(row => element("tr", {}, element("th", { scope: "row" }, `${row.place} `, element("b", {}, row.precision)),
    ...shownColumns.map(column => row.cells.has(column) ? cell(row.cells.get(column), figure, heat) : element("td"))));
  byId("grid").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  byId("grid-section").hidden = !cases.some(one => one.id);
  const left = [[rows.size, shownRows.length, "rows"], [allColumns.length, shownColumns.length, "columns"]].filter(([all, some]) => all > some);
  byId("grid-note").textContent = left.map(([all, some, what]) => `The first ${some} of ${whole.format(all)} ${what}; a filter shows others. `).join("") +
    (figure ? "Deeper blue is worse. A red frame: a check failed." : "");
}
function cell(one, figure, heat) {
  const passed = one.records.filter(record => record.outcome === "passed").length;
  const link = element("a", { href: one.link, title: `${one.id}: ${one.outcome}` });
  if (!figure) {
    link.append(`${SIGNS[one.outcome]} ${passed}/${one.records.length}`);
    return element("td", { class: one.outcome }, link);
  }
  const value = one.figures[figure.name];
  link.append(words(value, figure.unit) || "·");
  const made = element("td", { class: one.outcome === "failed" ? "heat bad-figure" : "heat" }, link);
  made.style.background = `color-mix(in srgb, light-dark(#2f6fb2, #4d94dd) ${Math.round(heat(value) * 55)}%, var(--panel))`;
  return made;
}
// From 0, the best, to 1, the worst of those shown; by ratio where all are above zero.
function heatOf(graphs, figure) {
  const numbers = graphs.map(one => one.figures[figure.name]).filter(value => typeof value === "number");
  const scale = numbers.every(value => value > 0) ? Math.log : value => value;
  let low = Infinity, high = -Infinity;
  for (const value of numbers) { low = Math.min(low, scale(value)); high = Math.max(high, scale(value)); }
  return value => {
    if (typeof value !== "number") return value === null ? 0 : 1;
    const share = high > low ? (scale(value) - low) / (high - low) : 0;
    return figure.better === "higher" ? (high > low ? 1 - share : 0) : share;
  };
}

// ---- table
const severity = ["failed", "infra", "expected-failure", "passed", "skipped"];
const figureColumns = D.figures.map((figure, at, all) => ({
  className: "number" + (at && all[at - 1].group !== figure.group ? ` of-${figure.group}` : ""),
  type: "num",
  data: (one, type) => {
    const value = one.figures[figure.name];
    if (type === "display") return words(value, figure.unit);
    return value === null ? -Infinity : value === NOT_FINITE ? Infinity : value;
  },
}));
const table = new DataTable("#cases", {
  data: cases, deferRender: true, pageLength: 25, autoWidth: false, order: [], orderMulti: true,
  layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: "paging" },
  language: { info: "_START_ to _END_ of _TOTAL_", infoEmpty: "none", infoFiltered: "", zeroRecords: "No case matches the filter.", emptyTable: "No case." },
  columnDefs: [{ targets: "_all", searchable: false }],
  columns: [
    { data: (one, type) => type === "display" ? `<span class="state ${escaped(one.outcome)}">${escaped(one.outcome)}</span>` : severity.indexOf(one.outcome), type: "num", className: "name" },
    { data: (one, type) => type === "display" ? escaped(one.run + 1) : one.run, type: "num", visible: D.runs.length > 1 },
    { data: (one, type) => type === "display" ? `<a href="${escaped(one.link)}">${escaped(one.name)}</a>` : one.id, className: "name", type: "string" },
    { data: (one, type) => type === "display" ? `${one.records.filter(r => r.outcome === "passed").length}/${one.records.length}` : one.records.length, type: "num", className: "number" },
    ...figureColumns,
  ],
});
table.search.fixed("page", (_, __, row) => isVisible[row] === 1);
let pageBefore = 25;
addEventListener("beforeprint", () => { pageBefore = table.page.len(); table.page.len(1000).draw(false); });
addEventListener("afterprint", () => table.page.len(pageBefore).draw(false));

// ---- expected failures
const MOST_EXPECTED = 500;
function age(since, run) {
  const days = Math.floor((Date.parse(run.started.slice(0, 10)) - Date.parse(since)) / 864e5);
  return Number.isFinite(days) ? `${whole.format(days)} days` : "";
}
const expected = cases.flatMap(one => one.records.filter(r => r.outcome === "expected-failure").map(r => [one, r]));
byId("expected-section").hidden = !expected.length;
byId("expected").append(...expected.slice(0, MOST_EXPECTED).map(([one, record]) => {
  const why = record.expected ?? {}, reason = [why.reason || record.message.split("\n")[0] || "no reason in the record"];
  if (why.link) reason.push(" (", /^https?:/.test(why.link) ? element("a", { href: why.link, rel: "noreferrer" }, why.link) : why.link, ")");
  return element("tr", {}, element("td", {}, runPrefix(one), element("a", { href: one.link }, one.name)), element("td", {}, record.check),
    element("td", { class: "reason" }, ...reason), element("td", {}, why.since || "not told"), element("td", {}, age(why.since, D.runs[one.run])), element("td", {}, why.look_again || ""));
}));
if (expected.length > MOST_EXPECTED) byId("expected").append(element("tr", {}, element("td", { colSpan: 6 },
  `${whole.format(expected.length - MOST_EXPECTED)} more are not listed here: filter the cases for expected-failure`)));

// ---- plots
const COLOURS = { F32: "#7f7f7f", F16: "#3b82c4", BF16: "#2a9d8f", W8F16: "#d98e04", W4F16: "#c2498d" };
const precisions = distinct(cases.map(c => c.quantization).filter(Boolean));
const colour = { field: "precision", type: "nominal", legend: null, scale: { domain: precisions, range: precisions.map(p => COLOURS[p] ?? "#8a8a8a") } };
const config = { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", tickCount: 5, gridOpacity: 1 } };
// One legend for all plots, of the page's own text: it wraps on a phone and follows the theme.
function legend(id, shapes) {
  byId(id).append(...precisions.map((precision, at) => {
    const sign = element("i", {}, "●");
    sign.style.color = colour.scale.range[at];
    return element("span", {}, sign, ` ${precision}`);
  }), ...shapes.map(([sign, what]) => element("span", {}, `${sign} ${what}`)));
}
legend("legend-against", [["●", "decode"], ["▲", "prefill"], ["■", "prefill_all"]]);
legend("legend-parity", [["▶", "worst position"], ["●", "mean"]]);
const embedded = new Map();
async function plot(id, spec, values, empty, options = {}) {
  const holder = byId(id), key = JSON.stringify(spec), before = embedded.get(id);
  // Other points in the same plot take a third of the time of a new plot.
  if (values.length && before?.key === key && holder.contains(before.view.container())) { await before.view.data("points", values).resize().runAsync(); return; }
  before?.finalize();
  embedded.delete(id);
  holder.classList.toggle("empty", !values.length);
  if (!values.length) { holder.replaceChildren(empty); return; }
  const made = await vegaEmbed(holder, { width: "container", autosize: { type: "fit", contains: "padding" }, data: { name: "points", values }, config, ...spec },
    { actions: false, renderer: "svg", ...options });
  embedded.set(id, { key, view: made.view, finalize: made.finalize });
  made.view.addEventListener("click", (_, item) => { if (item?.datum?.at !== undefined) location.hash = cases[item.datum.at].link; });
}
// As few points as a person can tell apart: a plot of thousands takes long to draw. Of points that look alike and lie in
// one cell of the plot the worst is drawn, with their number; cells widen until few are left. What is alone in its cell stays.
function merged({ points, look, x, y, worse }) {
  const columns = cellsOf(points.map(x)), rows = cellsOf(points.map(y)), looks = new Map();
  let spots = points.map((point, i) => {
    const name = look(point);
    if (!looks.has(name)) looks.set(name, looks.size);
    return { point, number: 1, look: looks.get(name), column: columns[i], row: rows[i] };
  });
  for (let halved = 0; spots.length > POINTS && CELLS >> (halved >> 1); halved++) {
    const byPlace = new Map();
    for (const spot of spots) {
      const place = (spot.look * CELLS + (spot.column >> ((halved + 1) >> 1))) * CELLS + (spot.row >> (halved >> 1));
      const there = byPlace.get(place);
      if (!there) { byPlace.set(place, spot); continue; }
      there.number += spot.number;
      if (worse(spot.point, there.point)) there.point = spot.point;
    }
    spots = [...byPlace.values()];
  }
  return spots.map(({ point, number }) => number === 1 ? point :
    { ...point, number, case: `${point.case}, the worst of ${whole.format(number)} close together` });
}
function cellsOf(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  return values.map(value => high > low ? Math.min(Math.floor((value - low) / (high - low) * CELLS), CELLS - 1) : 0);
}
const positive = value => typeof value === "number" && value > 0, has = value => value !== null && value !== undefined;
// Those whose values all have a place on a logarithmic scale, and how many have one that is zero, or not finite.
function drawable(all, values) {
  const left = all.filter(one => !values(one).every(positive)), zero = left.filter(one => !values(one).includes(NOT_FINITE)).length;
  return [all.filter(one => values(one).every(positive)), { zero, notFinite: left.length - zero }];
}
function tooltip(...fields) {
  return [["case", "case"], ["run", "run"], ...fields].filter(([field]) => field !== "run" || D.runs.length > 1).map(([field, title]) => ({ field, title, ...(field === "case" || field === "run" || field === "check" ? {} : { format: ".4g" }) }));
}
// What no case has cannot be chosen.
const told = D.figures.filter(f => cases.some(c => typeof c.figures[f.name] === "number")).map(f => f.name);
for (const option of [...byId("distance").options]) if (told.length && !told.includes(option.value)) option.remove();
function against(speed, kind) {
  const distance = byId("distance").value, title = byId("distance").selectedOptions[0]?.textContent ?? "distance";
  const figure = D.figures.find(f => f.name === distance), share = figure?.unit === "share";
  const [both, left] = drawable(visible.filter(one => has(one.figures[speed]) && has(one.figures[distance])),
    one => [one.figures[speed], one.figures[distance]]);
  const points = both.map(one => ({
    at: one.index, case: one.id, run: D.runs[one.run].id, precision: one.quantization, graph: one.graph, x: one.figures[speed], y: one.figures[distance] }));
  const axis = title => ({ type: "quantitative", scale: { type: "log", nice: true }, title, axis: { format: "~g" } });
  const y = share ? { type: "quantitative", scale: { zero: false }, title } :
    { ...axis(title.split(/(?<=,) (?=with)/)), axis: { format: distance.startsWith("lambada") ? "~g" : "~e" } };
  const worse = figure?.better === "higher" ? (a, b) => a.y < b.y : (a, b) => a.y > b.y;
  const set = { points, look: point => `${point.precision} ${GRAPHS.indexOf(point.graph)}`, x: point => Math.log(point.x),
    y: share ? point => point.y : point => Math.log(point.y), worse };
  return [{ height: 300, mark: { type: "point", filled: true, size: 80, opacity: .8, cursor: "pointer" }, encoding: {
    x: { field: "x", ...axis(`ms a token, ${kind}`) }, y: { field: "y", ...y }, color: colour,
    shape: { field: "graph", type: "nominal", legend: null, scale: { domain: GRAPHS, range: ["circle", "triangle-up", "square"] } },
    tooltip: tooltip(["x", `ms a token, ${kind}`], ["y", title]) } }, set, left];
}
// The page answers between any two steps, and goes no further where the filter has changed since.
async function drawPlots() {
  const of = byId("distance").value;
  byId("against-note").textContent = (of === "lambada_accuracy" ? "Left and high is better. " : "Left and low is better. ") +
    (of.startsWith("lambada") ? "LAMBADA tells what a checkpoint knows, too: compare cases of the same documents only. " :
      "The distance is from the same checkpoint in float64: it tells what compiling costs, not which checkpoint knows more. ") + "A point opens its case.";
  const asked = waiting, answered = () => new Promise(done => setTimeout(() => done(asked === waiting)));
  const [predicted, measured] = [against("predicted_token_ms", "predicted"), against("measured_token_ms", "measured")];
  const [parity, left] = drawable(visible.flatMap(one => one.records.flatMap(record => ["worst", "mean"].map(which => ({
    at: one.index, case: one.id, run: D.runs[one.run].id, precision: one.quantization, check: record.check, which, x: metric(record, `kl_${which}_nats`) }))))
    .filter(point => has(point.x)), point => [point.x]);
  if (!await answered()) return;
  const sets = [predicted[1], measured[1], { points: parity, look: point => `${point.precision} ${point.which} ${point.check}`,
    x: point => Math.log(point.x), y: () => 0, worse: (a, b) => a.x > b.x }];
  const shown = [];
  for (const set of sets) {
    shown.push(merged(set));
    if (!await answered()) return;
  }
  const [all, drawn] = [sets.map(set => set.points), shown].map(lists => lists.reduce((sum, list) => sum + list.length, 0));
  const zero = predicted[2].zero + measured[2].zero + left.zero, notFinite = predicted[2].notFinite + measured[2].notFinite + left.notFinite;
  byId("plot-note").textContent = (all > drawn ? `Plots draw ${whole.format(drawn)} of ${whole.format(all)} points: ` +
    "where several of one look are close together, the worst stands for them and says for how many. A narrower filter shows each. " : "") +
    (zero + notFinite ? `Plots leave out ${[[zero, "at 0, for which a logarithmic scale has no place"], [notFinite, "not finite"]]
      .filter(([number]) => number).map(([number, what]) => `${whole.format(number)} ${number === 1 ? "point" : "points"} ${what}`).join(", and ")}.` : "");
  await plot("plot-predicted", predicted[0], shown[0], "No case has both a predicted time and a distance.");
  if (!await answered()) return;
  await plot("plot-measured", measured[0], shown[1], "Nothing here was measured on a board. The simulator's own time is no measure of the chip.");
  if (!await answered()) return;
  await plot("plot-parity", { height: 56 + 34 * distinct(parity.map(point => point.check)).length, mark: { type: "point", filled: true, size: 60, opacity: .6, cursor: "pointer" }, encoding: {
    x: { field: "x", type: "quantitative", scale: { type: "log", nice: true }, title: "KL divergence, nats", axis: { format: "~e" } },
    y: { field: "check", type: "nominal", title: null, axis: { labelLimit: innerWidth < 640 ? 110 : 220 } }, color: colour,
    shape: { field: "which", type: "nominal", legend: null, scale: { domain: ["worst", "mean"], range: ["triangle-right", "circle"] } },
    tooltip: tooltip(["check", "check"], ["which", "which"], ["x", "KL, nats"]).map(one => one.field === "which" ? { field: "which" } : one) } },
    shown[2], "No check told a KL divergence.");
}
let drawing = Promise.resolve(), waiting = 0;
// The grid and the table answer at once, plots when nobody types.
function plotSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(() => { drawing = drawing.then(drawPlots); }, 300);
}
byId("distance").addEventListener("change", plotSoon);

// ---- KL divergence by position, of the case that is open
const CURVES = ["#3b82c4", "#d98e04", "#c2498d", "#2a9d8f", "#8a6fd1", "#7f7f7f"];
const KL_FLOOR = 1e-12; // what is closer is equal but for the rounding of float64, and a log scale has no zero
// Float32 as base64; null is not finite.
function decoded(curve) {
  const numbers = new Float32Array(Uint8Array.from(atob(curve), byte => byte.charCodeAt(0)).buffer);
  return Array.from(numbers, value => Number.isFinite(value) ? value : null);
}
function curvesOf(one) {
  return one.records.filter(record => record.curve).map((record, curve) => ({
    curve, check: record.check, colour: CURVES[curve % CURVES.length], positions: D.positions[record.positions], kl: decoded(record.curve) }));
}
function curveBlock(one) {
  const curves = curvesOf(one);
  if (!curves.length) return [];
  const notes = curves.map(({ check, positions, kl }) => [check, positions.filter((_, at) => kl[at] === null), positions.length])
    .filter(([, bad]) => bad.length).map(([check, bad, all]) => `${check}: not finite at ${whole.format(bad.length)} of ${whole.format(all)} positions, the first is ${bad[0]}.`);
  if (curves.some(curve => curve.kl.some(value => value !== null && value < KL_FLOOR))) notes.push(`What is below ${KL_FLOOR} nats is drawn there.`);
  return [element("h3", {}, "KL divergence by position", element("br"), element("small", {}, "of each check, the judgement with the worst position")),
    element("p", { class: "legend" }, ...curves.map(({ check, colour }) => {
      const sign = element("i", {}, "●");
      sign.style.color = colour;
      return element("span", {}, sign, ` ${check}`);
    })),
    element("div", { id: "plot-curves", class: "plot" }), ...notes.map(note => element("p", { class: "note" }, note)),
    // Inside the dialog: whatever lies outside is behind it.
    element("div", { id: "curve-tooltip" })];
}
async function drawCurves(one) {
  if (one !== opened) return; // another case was opened meanwhile
  const curves = curvesOf(one), values = curves.flatMap(({ curve, check, positions, kl }) => positions.map((position, at) => ({
    curve, check, position, told: kl[at], kl: kl[at] === null ? null : Math.max(kl[at], KL_FLOOR) })));
  if (!values.length) return;
  await plot("plot-curves", { height: 220, mark: { type: "line", point: { size: 24 }, strokeWidth: 1.2 }, encoding: {
    x: { field: "position", type: "quantitative", scale: { zero: true }, title: "position in the text, from 0", axis: { format: "d", tickMinStep: 1 } },
    y: { field: "kl", type: "quantitative", scale: { type: "log", nice: true }, title: "KL divergence, nats", axis: { format: "~e" } },
    color: { field: "curve", type: "nominal", legend: null, scale: { domain: curves.map(({ curve }) => curve), range: curves.map(curve => curve.colour) } },
    tooltip: [{ field: "check" }, { field: "position" }, { field: "told", title: "KL, nats", format: ".2e" }] } },
    values.some(value => value.kl !== null) ? values : [], "No position has a finite divergence.", { tooltip: { id: "curve-tooltip" } });
}

// ---- one case
const dialog = byId("case");
let opened = null;
const OF_CHECK = [["measured", "Measured"], ["simulator_wall", "The simulator's own process", "no performance figures of the chip"],
  ["host_wall", "Wall time of the check", "of the machine that ran it: no performance figure"]];
const OF_CASE = [["predicted", "Predicted by the compiler's cycle profile", "for one call of the graph: no measurement"],
  ["compiled", "Compile", "when the bmodel was made, be it in this run or before"]];
function showCase(one) {
  const run = D.runs[one.run];
  const command = one.id ? run.command.split("CASE").join(one.id) : D.texts[one.command];
  const copy = element("button", { type: "button" }, "Copy");
  copy.addEventListener("click", () => navigator.clipboard?.writeText(command).then(() => { copy.textContent = "Copied"; }));
  const close = element("button", { type: "button", class: "close" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const made = distinct(one.records.map(record => record.bmodel).filter(Boolean));
  dialog.replaceChildren(close, element("h2", { id: "case-title" }, one.name),
    element("p", {}, element("span", { class: `state ${one.outcome}` }, one.outcome), ` Checkpoint ${run.checkpoint}, TPU-MLIR ${run.toolchain}, on ${run.where}, run ${run.id}.`),
    element("h3", {}, `Judge it again${run.commit ? `, at commit ${run.commit.slice(0, 12)}` : ""}`), element("div", { class: "command" }, element("code", {}, command), copy),
    // The same in each of the case's records.
    element("div", { class: "kinds" }, ...figureTables(one.records.find(record => of(record, "predicted").length) ?? one.records[0], OF_CASE)),
    ...made.map(sha256 => element("p", { class: "note" }, "bmodel ", element("code", {}, sha256))),
    ...curveBlock(one), ...one.records.map(checkBlock));
  opened = one;
  if (!dialog.open) dialog.showModal();
  drawing = drawing.then(() => drawCurves(one));
  dialog.scrollTop = 0;
}
function of(record, kind) {
  return D.shapes[record.shape].map((number, at) => [D.metrics[number], record.values[at]]).filter(([[, has]]) => has === kind);
}
function figureTables(record, kinds) {
  return kinds.filter(([kind]) => of(record, kind).length).map(([kind, heading, remark]) => element("div", {},
    element("h3", {}, heading, ...(remark ? [element("br"), element("small", {}, remark)] : [])),
    element("table", { class: "metrics" }, ...of(record, kind).map(([[name, , unit], value]) => element("tr", {},
      element("td", {}, name), element("td", { class: "number" }, words(value, unit)), element("td", {}, unit === "share" ? "" : unit))))));
}
function checkBlock(record) {
  const why = record.expected ? [element("p", {}, `Expected: ${record.expected.reason}${record.expected.since ? `, since ${record.expected.since}` : ""}`)] : [];
  return element("div", { class: "check" },
    element("p", {}, element("span", { class: `state ${record.outcome}` }, record.outcome + (record.stage ? ` at ${record.stage}` : "")), " ", element("b", {}, record.check)),
    ...why, ...(record.message ? [element("pre", {}, record.message)] : []), element("div", { class: "kinds" }, ...figureTables(record, OF_CHECK)));
}
function followFragment() {
  let key = "";
  try { key = decodeURIComponent(location.hash.slice(1)); } catch { /* somebody typed it */ }
  const one = byKey.get(key);
  if (one) showCase(one); else if (dialog.open) dialog.close();
}
dialog.addEventListener("close", () => { if (location.hash) history.replaceState(null, "", location.pathname + location.search); });
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
addEventListener("hashchange", followFragment);

// ---- theme
byId("theme").value = document.documentElement.dataset.theme || "auto";
byId("theme").addEventListener("change", event => {
  document.documentElement.dataset.theme = event.target.value;
  try { localStorage.setItem("theme", event.target.value); } catch { /* not kept then */ }
});

applyFilter();
followFragment();
document.documentElement.dataset.ready = "yes";
