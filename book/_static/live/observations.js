// Random numbers that are the same at every visit, and what is seen of a state.

export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  // Mulberry32: uniform on [0, 1).
  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  // Box–Muller: standard normal.
  normal() {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
}

// So many of the sites, drawn without replacement: true where something is seen.
export function drawPlaces(sites, count, random) {
  const tickets = Array.from({ length: sites }, (_, site) => ({ site, ticket: random.uniform() }));
  const drawn = tickets.sort((a, b) => a.ticket - b.ticket).slice(0, count);
  const places = new Array(sites).fill(false);
  for (const { site } of drawn) places[site] = true;
  return places;
}

// Noisy values where something is seen, NaN elsewhere.
export function observe(truth, places, sigma, random) {
  return truth.map((value, i) => {
    const error = sigma * random.normal(); // drawn for every site: what is seen does not change what follows
    return places[i] ? value + error : NaN;
  });
}
