// The cycle of a trained recurrent filter without a lag, as in assim_lib/filter.py and assim_lib/analyses/neural.py.

import { flow, tendency } from "./dynamics.js";

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const silu = (x) => x * sigmoid(x);

// A windowed product over a ring: numbers stand site by site, so that a window is one slice of the padded ring.
function convolve(x, sites, { weight, bias }) {
  const outputs = bias.length;
  const entries = weight.length / outputs; // in a window
  const channels = x.length / sites;
  const pad = (entries - channels) / 2;
  const ring = new Float64Array(x.length + 2 * pad);
  ring.set(x.subarray(x.length - pad), 0);
  ring.set(x, pad);
  ring.set(x.subarray(0, pad), pad + x.length);
  const y = new Float64Array(sites * outputs);
  for (let site = 0; site < sites; site++) {
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let j = 0, w = o * entries, r = site * channels; j < entries; j++) sum += weight[w + j] * ring[r + j];
      y[site * outputs + o] = sum;
    }
  }
  return y;
}

function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

export class Filter {
  // What `book/live_page.py` exports of a checkpoint.
  constructor({ mean, std, clamp, memory, steps, layers }) {
    const [embed, ...rest] = layers.map(({ weight, bias }) => ({ weight: numbers(weight), bias: numbers(bias) }));
    Object.assign(this, { mean, std, memory, steps, embed, head: rest.pop(), blocks: rest });
    this.lowest = mean - clamp * std;
    this.highest = mean + clamp * std;
  }

  // What is carried from cycle to cycle: a forecast, and an empty memory.
  start(state) {
    this.forecast = state;
    this.remembered = new Float64Array(state.length * this.memory);
  }

  // Use one observation, NaN where nothing is seen; return the analysis.
  cycle(observation, sigma) {
    const sites = observation.length;
    const outputs = this.network(this.features(observation, sigma), sites);
    const width = outputs.length / sites;
    const analysis = this.forecast.map((value, i) => this.bounded(value + this.std * outputs[i * width]));
    this.remembered = this.remembered.map((old, i) => {
      const at = Math.floor(i / this.memory) * width + 1 + (i % this.memory);
      const written = Math.tanh(outputs[at + this.memory]);
      return written + sigmoid(outputs[at]) * (old - written);
    });
    this.forecast = flow(analysis, this.steps);
    return analysis;
  }

  bounded(value) {
    return Math.min(this.highest, Math.max(this.lowest, value));
  }

  features(observation, sigma) {
    const rate = tendency(this.forecast);
    const width = 6 + this.memory;
    const features = new Float64Array(observation.length * width);
    observation.forEach((value, i) => {
      const seen = !Number.isNaN(value);
      const missed = seen ? value - this.forecast[i] : 0;
      features.set(
        [
          (this.forecast[i] - this.mean) / this.std,
          rate[i] / this.std,
          missed / sigma,
          Number(seen),
          missed / this.std,
          Math.log(sigma / this.std),
          ...this.remembered.subarray(i * this.memory, (i + 1) * this.memory),
        ],
        i * width,
      );
    });
    return features;
  }

  // Embed, correct block by block, read out.
  network(features, sites) {
    let h = convolve(features, sites, this.embed);
    for (const block of this.blocks) {
      const change = convolve(h.map(silu), sites, block);
      h = h.map((value, i) => value + change[i]);
    }
    return convolve(h.map(silu), sites, this.head);
  }
}
