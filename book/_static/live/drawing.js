// Space–time diagrams and curves on a canvas, in the colours of the book's figures and of the page's theme.

const VIRIDIS = ["#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743", "#fde725"];
const RED_BLUE = ["#053061", "#2a71b2", "#6bacd1", "#c2ddec", "#f7f6f6", "#fbccb4", "#e48066", "#ba2832", "#67001f"];

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// Colours at equal distances, and between them what lies between.
class ColorScale {
  constructor(colors, low, high) {
    Object.assign(this, { colors, low, high, stops: colors.map(channels) });
  }

  // Red, green and blue.
  of(value) {
    const { low, high, stops } = this;
    const place = Math.min(1, Math.max(0, (value - low) / (high - low))) * (stops.length - 1);
    const left = Math.min(stops.length - 2, Math.floor(place));
    return stops[left].map((c, i) => c + (place - left) * (stops[left + 1][i] - c));
  }

  show(element) {
    element.style.background = `linear-gradient(to right, ${this.colors})`;
    element.before(String(this.low).replace("-", "−"));
    element.after(String(this.high));
  }
}

export const STATES = new ColorScale(VIRIDIS, -8, 13);
export const ERRORS = new ColorScale(RED_BLUE, -6, 6);

// A colour that the style sheet names.
export const colorOf = (canvas, name) => getComputedStyle(canvas).getPropertyValue(`--live-${name}`).trim();

// An empty canvas, sharp on every screen, in units of the page's pixels.
function surface(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

// Columns of sites, from the left; what is not a number is left blank.
export function hovmoller(canvas, columns, length, scale) {
  const sites = columns.length ? columns[0].length : 1;
  const picture = new ImageData(length, sites);
  columns.forEach((column, x) => {
    column.forEach((value, site) => {
      if (Number.isNaN(value)) return;
      picture.data.set([...scale.of(value), 255], 4 * ((sites - 1 - site) * length + x));
    });
  });
  const small = document.createElement("canvas");
  [small.width, small.height] = [length, sites];
  small.getContext("2d").putImageData(picture, 0, 0);
  const { context, width, height } = surface(canvas);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}

const MARGIN = { left: 34, right: 8, top: 8, bottom: 34 };

// Two axes, and what is drawn along them. `x` and `y` are { low, high, ticks, label }, `y.log` is optional.
export class Plot {
  constructor(canvas, x, y) {
    Object.assign(this, { canvas, x, y, ...surface(canvas) });
    this.inner = { width: this.width - MARGIN.left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    this.frame();
  }

  static share({ low, high, log }, value) {
    const measure = log ? Math.log : (v) => v;
    return (measure(value) - measure(low)) / (measure(high) - measure(low));
  }

  across(value) {
    return MARGIN.left + this.inner.width * Plot.share(this.x, value);
  }

  // What stands so many pixels from the left.
  value(pixels) {
    return this.x.low + ((this.x.high - this.x.low) * (pixels - MARGIN.left)) / this.inner.width;
  }

  up(value) {
    return MARGIN.top + this.inner.height * (1 - Plot.share(this.y, value));
  }

  frame() {
    const { context, height } = this;
    const ink = getComputedStyle(this.canvas);
    context.fillStyle = ink.color;
    context.font = `12px ${ink.fontFamily}`;
    context.textAlign = "center";
    for (const tick of this.x.ticks) context.fillText(tick, this.across(tick), height - MARGIN.bottom + 15);
    context.fillText(this.x.label, MARGIN.left + this.inner.width / 2, height - 3);
    context.textAlign = "right";
    for (const tick of this.y.ticks) {
      context.fillText(tick, MARGIN.left - 5, this.up(tick) + 4);
      this.line([this.x.low, this.x.high], [tick, tick], { color: "grid", width: 1 });
    }
    this.clipped = new Path2D();
    this.clipped.rect(MARGIN.left, MARGIN.top, this.inner.width, this.inner.height);
  }

  // A line through points, in a colour of the style sheet. It ends where one is not a number.
  line(xs, ys, { color, width = 2, dash = [] }) {
    const { context } = this;
    context.save();
    if (this.clipped) context.clip(this.clipped);
    context.strokeStyle = colorOf(this.canvas, color);
    context.lineWidth = width;
    context.lineJoin = "round";
    context.setLineDash(dash);
    context.beginPath();
    xs.forEach((x, i) => context.lineTo(this.across(x), this.up(ys[i])));
    context.stroke();
    context.restore();
  }

  dots(xs, ys, { color, radius = 3 }) {
    const { context } = this;
    context.fillStyle = colorOf(this.canvas, color);
    xs.forEach((x, i) => {
      if (Number.isNaN(ys[i])) return;
      context.beginPath();
      context.arc(this.across(x), this.up(ys[i]), radius, 0, 2 * Math.PI);
      context.fill();
    });
  }
}
