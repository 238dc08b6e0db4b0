// Colours: one for each request, always the same, and those of the states, for both schemes.

const GOLDEN_ANGLE = 137.508;

const FIRST_HUE = 250;
const SLOTS = 24;
const MOST_SLOTS = 8192;

// Neighbours differ in lightness as well as in hue, for eyes that tell few hues apart.
const SCHEMES = {
  dark: { paper: [19, 24, 32], free: [33, 40, 51], cached: [86, 97, 115], hatch: [58, 67, 82], pin: [242, 193, 78],
          mark: [255, 255, 255], ink: [10, 13, 18], lightness: [0.72, 0.82, 0.62], chroma: 0.135, text: "#e7ebf2",
          muted: "#8d97a8", grid: "#2a3240", accent: "#5aa9f5" },
  light: { paper: [255, 255, 255], free: [233, 236, 241], cached: [166, 174, 187], hatch: [202, 208, 217], pin: [196, 140, 0],
           mark: [20, 24, 32], ink: [255, 255, 255], lightness: [0.6, 0.7, 0.5], chroma: 0.14, text: "#1a202b",
           muted: "#667085", grid: "#dfe3ea", accent: "#1f6fd0" },
};

/**
 * Which request has which colour, by number. Whoever comes gets the first one that none of those has who are there, so
 * that a few requests look as different as can be; and keeps it. Schemes share this.
 */
export class Slots {
  #slots = new Map();
  #present = [];

  /** Says whose colours should not be given to others now. */
  keep(keys) {
    this.#present = keys;
  }

  of(key) {
    let slot = this.#slots.get(key);
    if (slot === undefined) {
      const taken = new Set(this.#present.map((present) => this.#slots.get(present)));
      for (slot = 0; taken.has(slot); ) slot++;
      if (slot === 0 && taken.size === 0) slot = this.#slots.size % SLOTS; // nobody is known to be there: in turn
      this.#slots.set(key, slot);
      for (const oldest of this.#slots.keys()) {
        if (this.#slots.size <= MOST_SLOTS) break;
        this.#slots.delete(oldest);
      }
      if (!this.#present.includes(key)) this.#present.push(key);
    }
    return slot;
  }
}

/** The colours of a scheme; rgb triples but for text, muted, grid and accent. */
export class Palette {
  #colours = [];

  constructor(name, slots = new Slots()) {
    this.name = name;
    this.slots = slots;
    Object.assign(this, SCHEMES[name]);
  }

  /** A request's colour, by its key. */
  ofRequest(key) {
    const slot = this.slots.of(key);
    return (this.#colours[slot] ??= fromOklch(this.lightness[slot % 3], this.chroma, (slot * GOLDEN_ANGLE + FIRST_HUE) % 360));
  }
}

/** Between two colours; share 0 is the first. */
export function mix(first, second, share) {
  return first.map((value, i) => Math.round(value + (second[i] - value) * share));
}

export function css(colour) {
  return `rgb(${colour[0]} ${colour[1]} ${colour[2]})`;
}

/** The colour as a little-endian pixel of a canvas. */
export function pixel(colour) {
  return (0xff000000 | (colour[2] << 16) | (colour[1] << 8) | colour[0]) >>> 0;
}

// Björn Ottosson's OKLab, https://bottosson.github.io/posts/oklab/
function fromOklch(lightness, chroma, hue) {
  const angle = (hue * Math.PI) / 180;
  const a = chroma * Math.cos(angle), b = chroma * Math.sin(angle);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((value) => Math.round(255 * Math.min(1, Math.max(0, gamma(value)))));
}

function gamma(value) {
  return value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055;
}
