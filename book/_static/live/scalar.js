// One number, one observation: the Kalman update, to be dragged.

import { Plot } from "./drawing.js";

const FORECAST = 10;
const RANGE = { low: 0, high: 20, ticks: [0, 5, 10, 15, 20], label: "temperature (°C)" };

export function update({ forecast, spread, observation, sigma }) {
  const gain = spread ** 2 / (spread ** 2 + sigma ** 2);
  return { gain, mean: forecast + gain * (observation - forecast), deviation: Math.sqrt(1 - gain) * spread };
}

export const density = (x, mean, deviation) =>
  Math.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * Math.sqrt(2 * Math.PI));

const page = document.getElementById("scalar");
const part = (name) => page.querySelector(`[data-part="${name}"]`);

function read() {
  const [observation, spread, sigma] = ["observation", "spread", "sigma"].map((name) => Number(part(name).value));
  return { forecast: FORECAST, observation, spread, sigma };
}

function draw() {
  const given = read();
  const { gain, mean, deviation } = update(given);
  const { observation, spread, sigma } = given;
  for (const name of ["observation", "spread", "sigma"]) part(`${name}-value`).textContent = given[name].toFixed(1);
  part("gain").textContent =
    `${(spread ** 2).toFixed(2)} / (${(spread ** 2).toFixed(2)} + ${(sigma ** 2).toFixed(2)}) = ${gain.toFixed(2)}`;
  part("mean").textContent =
    `${FORECAST} + ${gain.toFixed(2)} · (${observation.toFixed(1)} − ${FORECAST}) = ${mean.toFixed(2)}`;
  part("deviation").textContent =
    `√(1 − ${gain.toFixed(2)}) · ${spread.toFixed(1)} = ${deviation.toFixed(2)}`;

  const xs = Array.from({ length: 401 }, (_, i) => RANGE.low + ((RANGE.high - RANGE.low) * i) / 400);
  const highest = 1.1 * density(0, 0, deviation);
  const plot = new Plot(part("picture"), RANGE, { low: 0, high: highest, ticks: [] });
  const curve = (center, width, style) => plot.line(xs, xs.map((x) => density(x, center, width)), style);
  curve(FORECAST, spread, { color: "free", dash: [7, 4] });
  curve(observation, sigma, { color: "observation", dash: [2, 3] });
  curve(mean, deviation, { color: "filter", width: 3 });
  plot.line([observation, observation], [0, highest], { color: "grid", width: 1 });
  plot.dots([observation], [0], { color: "observation", radius: 9 });
  return plot;
}

function listen() {
  let plot = draw();
  const canvas = part("picture");
  const redraw = () => (plot = draw());
  page.addEventListener("input", redraw);
  new ResizeObserver(redraw).observe(canvas);
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  for (const kind of ["pointerdown", "pointermove"]) {
    canvas.addEventListener(kind, (event) => {
      if (!event.buttons) return;
      part("observation").value = plot.value(event.offsetX); // the slider keeps it in its range
      redraw();
    });
  }
}

if (page) listen();
