// The live page: what its controls do, and when it is drawn.

import { SITES, STEP } from "./dynamics.js";
import { ERRORS, Plot, STATES, hovmoller } from "./drawing.js";
import { Filter } from "./filter.js";
import { Twin, rmse } from "./twin.js";
import { WEIGHTS } from "./weights.js";

const LENGTH = 160; // cycles that are shown
const PACE = 100; // milliseconds a cycle
const SUMMARY = 5000; // milliseconds between two summaries for a screen reader
const WINDOW = 50; // cycles of a running mean

const page = document.getElementById("live");
const part = (name) => page.querySelector(`[data-part="${name}"]`);
const two = (value) => value.toFixed(2);

class LivePage {
  constructor() {
    this.visible = true;
    this.running = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.last = 0;
    this.spoken = 0;
    STATES.show(part("states"));
    ERRORS.show(part("differences"));
    this.restart();
    this.listen();
    this.wake();
  }

  restart() {
    this.twin = new Twin(new Filter(WEIGHTS));
    this.history = [];
    this.draw();
  }

  listen() {
    part("run").addEventListener("click", () => this.setRunning(!this.running));
    part("step").addEventListener("click", () => this.act(() => this.advance()));
    part("kick").addEventListener("click", () => this.act(() => this.twin.kick()));
    part("forecast").addEventListener("click", () => this.act(() => this.twin.forecast()));
    part("restart").addEventListener("click", () => this.act(() => this.restart()));
    for (const name of ["sigma", "seen"]) part(name).addEventListener("input", () => this.label());
    new IntersectionObserver(([entry]) => {
      this.visible = entry.isIntersecting;
      this.wake();
    }).observe(page);
    new ResizeObserver(() => this.draw()).observe(page);
    // The theme's switch between light and dark.
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    this.setRunning(this.running);
    this.label();
  }

  setRunning(running) {
    this.running = running;
    part("run").textContent = running ? "Pause" : "Start";
    if (!running) this.speak();
    this.wake();
  }

  act(change) {
    change();
    this.draw();
    this.speak();
  }

  get settings() {
    return {
      sigma: Number(part("sigma").value),
      seen: Number(part("seen").value),
      fixed: part("fixed").checked,
    };
  }

  label() {
    const { sigma, seen } = this.settings;
    part("sigma-value").textContent = sigma.toFixed(1);
    part("seen-value").textContent = `${seen} of ${SITES}`;
  }

  // Run while it is wanted and seen; the browser itself stops what is in a hidden tab.
  wake() {
    if (this.frame || !this.running || !this.visible) return;
    this.frame = requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.frame = 0;
    if (now - this.last >= PACE) {
      this.last = now;
      this.advance();
      this.draw();
      if (now - this.spoken >= SUMMARY) {
        this.spoken = now;
        this.speak();
      }
    }
    this.wake();
  }

  advance() {
    const { sigma } = this.settings;
    const { truth, observation, analysis, free } = this.twin.advance(this.settings);
    const errors = { filter: rmse(analysis, truth), free: rmse(free, truth), sigma };
    this.history.push({ truth, observation, analysis, free, errors });
    if (this.history.length > LENGTH) this.history.shift();
  }

  get time() {
    return this.twin.cycles * this.interval;
  }

  get interval() {
    return STEP * this.twin.filter.steps;
  }

  get numbers() {
    const recent = this.history.slice(-WINDOW).map(({ errors }) => errors.filter);
    return {
      time: this.time.toFixed(1),
      filter: two(rmse(this.twin.analysis, this.twin.truth)),
      mean: recent.length ? two(recent.reduce((a, b) => a + b) / recent.length) : "–",
      free: two(rmse(this.twin.free, this.twin.truth)),
      climate: two(WEIGHTS.std),
    };
  }

  speak() {
    const { time, filter, free, climate } = this.numbers;
    part("summary").textContent =
      `Time ${time}. Error of the filter ${filter}, of the free forecast ${free}; of the climatology ${climate}.`;
  }

  draw() {
    for (const [name, text] of Object.entries(this.numbers)) part(`now-${name}`).textContent = text;
    const fields = (choose) => this.history.map(choose);
    const minus = (name) => fields((moment) => moment[name].map((value, i) => value - moment.truth[i]));
    const picture = (name, columns, scale) => hovmoller(part(name), columns, LENGTH, scale);
    picture("truth", fields(({ truth }) => truth), STATES);
    picture("observation", fields(({ observation }) => observation), STATES);
    picture("analysis", fields(({ analysis }) => analysis), STATES);
    picture("free", fields(({ free }) => free), STATES);
    picture("analysis-error", minus("analysis"), ERRORS);
    picture("free-error", minus("free"), ERRORS);
    this.drawErrors();
    this.drawNow();
  }

  drawErrors() {
    const first = this.time - (this.history.length - 1) * this.interval;
    const end = Math.max(this.time, LENGTH * this.interval);
    const begin = end - LENGTH * this.interval;
    const ticks = Array.from({ length: 4 }, (_, i) => 5 * (Math.ceil(begin / 5) + i)).filter((tick) => tick <= end);
    const plot = new Plot(
      part("errors"),
      { low: begin, high: end, ticks, label: "time" },
      { low: 0.1, high: 10, ticks: [0.1, 0.3, 1, 3, 10], log: true },
    );
    const times = this.history.map((_, i) => first + i * this.interval);
    const of = (name) => this.history.map(({ errors }) => errors[name]);
    plot.line([begin, end], [WEIGHTS.std, WEIGHTS.std], { color: "climate", dash: [3, 3] });
    plot.line(times, of("sigma"), { color: "observation", dash: [2, 3] });
    plot.line(times, of("free"), { color: "free", dash: [7, 4] });
    plot.line(times, of("filter"), { color: "filter", width: 2.5 });
  }

  drawNow() {
    const plot = new Plot(
      part("now"),
      { low: 0, high: SITES - 1, ticks: [0, 10, 20, 30], label: "site" },
      { low: -10, high: 15, ticks: [-10, 0, 10] },
    );
    const moment = this.history.at(-1);
    if (!moment) return;
    const sites = Array.from({ length: SITES }, (_, i) => i);
    const along = (name, style) => plot.line(sites, [...moment[name]], style);
    along("free", { color: "free", dash: [7, 4] });
    along("truth", { color: "truth", width: 8 });
    along("analysis", { color: "filter", width: 2.5 });
    plot.dots(sites, [...moment.observation], { color: "observation" });
  }
}

new LivePage();
