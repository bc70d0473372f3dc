// A truth, a filter that sees noisy observations of it, and a forecast that sees none.

import { SITES, flow, onAttractor } from "./dynamics.js";
import { Random, drawPlaces, observe } from "./observations.js";

const SEED = 20;
const KICK = 3;

export const rmse = (x, truth) => Math.sqrt(x.reduce((sum, v, i) => sum + (v - truth[i]) ** 2, 0) / x.length);

export class Twin {
  constructor(filter) {
    this.filter = filter;
    this.random = new Random(SEED);
    this.cycles = 0;
    this.truth = onAttractor(this.random);
    // The filter knows no more than the climate: it starts from another day.
    const start = onAttractor(this.random);
    filter.start(start);
    this.free = start;
    this.analysis = start;
  }

  // One observation: `seen` of the sites, always the same ones if `fixed`, with errors of standard deviation `sigma`.
  advance({ sigma, seen, fixed }) {
    this.truth = flow(this.truth, this.filter.steps);
    this.free = flow(this.free, this.filter.steps);
    const draw = new Random(fixed ? SEED : SEED + this.cycles + 1);
    const observation = observe(this.truth, drawPlaces(SITES, seen, draw), sigma, this.random);
    this.analysis = this.filter.cycle(observation, sigma);
    this.cycles += 1;
    return { truth: this.truth, observation, analysis: this.analysis, free: this.free };
  }

  // Errors at every site of what the filter believes.
  kick() {
    this.filter.forecast = this.filter.forecast.map((v) => this.filter.bounded(v + KICK * this.random.normal()));
  }

  // A new free forecast, from the filter's present analysis.
  forecast() {
    this.free = this.analysis;
  }
}
