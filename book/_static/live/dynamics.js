// The Lorenz-96 model and the classical Runge–Kutta step, as in assim_lib/systems.

const FORCING = 8;
export const SITES = 40;
export const STEP = 0.05;

export function tendency(x) {
  const n = x.length;
  return x.map((value, i) => (x[(i + 1) % n] - x[(i + n - 2) % n]) * x[(i + n - 1) % n] - value + FORCING);
}

export function step(x, dt = STEP) {
  const along = (slope, share) => x.map((value, i) => value + share * dt * slope[i]);
  const k1 = tendency(x);
  const k2 = tendency(along(k1, 0.5));
  const k3 = tendency(along(k2, 0.5));
  const k4 = tendency(along(k3, 1));
  return x.map((value, i) => value + (dt / 6) * (k1[i] + 2 * (k2[i] + k3[i]) + k4[i]));
}

export function flow(x, steps) {
  for (let i = 0; i < steps; i++) x = step(x);
  return x;
}

// A state of the free-running model, long after it has left its place of rest.
export function onAttractor(random) {
  const start = Float64Array.from({ length: SITES }, () => FORCING + random.normal());
  return flow(start, 400);
}
