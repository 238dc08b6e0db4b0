// The last minutes, for replay: whole states now and then, and the changes between them.

import { TierState } from "./model.js";

const SECONDS = 300;
const BYTES = 96 * 1024 * 1024;
const FRAMES_PER_KEY = 40;
const BYTES_PER_CHANGE = 11; // of a cell: its index and what is told of it
const BYTES_PER_ROW = 256; // of a list, about

/** A bounded run of frames. Frames have numbers that only grow; the oldest are forgotten, a whole segment at a time. */
export class Recording {
  // Segment: {key: Map name → TierState as of its first frame, frames, bytes, first: number of its first frame}.
  #segments = [];
  #next = 0;
  #cursor = null;

  constructor({ seconds = SECONDS, bytes = BYTES, framesPerKey = FRAMES_PER_KEY } = {}) {
    this.seconds = seconds;
    this.maxBytes = bytes;
    this.framesPerKey = framesPerKey;
  }

  get first() { return this.#segments.length ? this.#segments[0].first : 0; }
  get last() { return this.#next - 1; }
  get empty() { return this.#segments.length === 0; }
  get bytes() { return this.#segments.reduce((sum, segment) => sum + segment.bytes, 0); }
  get keyframes() { return this.#segments.length; }

  /** Adds a frame. tiers: the whole state with it, Map name → TierState; copied if it becomes a key. */
  add(frame, tiers) {
    const current = this.#segments.at(-1);
    const changes = frame.tiers.reduce((sum, change) => sum + change.states.length * BYTES_PER_CHANGE, 0);
    const rows = 1024 + BYTES_PER_ROW * (frame.running.length + (frame.waiting?.length ?? 0));
    const full = current && (current.frames.length >= this.framesPerKey || current.changes > 4 * current.keyBytes);
    if (!current || full || frame.kind === "all") {
      const key = new Map([...tiers].map(([name, state]) => [name, state.clone()]));
      const keyBytes = [...key.values()].reduce((sum, state) => sum + state.bytes, 0);
      // The key holds what the frame's cells would say.
      this.#segments.push({
        key, keyBytes, changes: 0, first: this.#next, frames: [{ ...frame, tiers: [] }], bytes: keyBytes + rows,
      });
    } else {
      current.frames.push(frame);
      current.changes += changes;
      current.bytes += changes + rows;
    }
    this.#next += 1;
    this.#forget(frame.seconds);
  }

  /** The state at a frame: {tiers: Map name → TierState, frame}. Stepping forward costs only the changes between. */
  at(number) {
    const wanted = Math.min(Math.max(number, this.first), this.last);
    const segment = this.#segments.findLast((candidate) => candidate.first <= wanted);
    let cursor = this.#cursor;
    if (cursor === null || cursor.segment !== segment || cursor.number > wanted) {
      const tiers = new Map([...segment.key].map(([name, state]) => [name, state.clone()]));
      cursor = this.#cursor = { segment, number: segment.first, tiers };
    }
    for (; cursor.number < wanted; cursor.number++) {
      for (const change of segment.frames[cursor.number + 1 - segment.first].tiers) cursor.tiers.get(change.name).apply(change);
    }
    return { tiers: cursor.tiers, frame: segment.frames[wanted - segment.first], number: wanted };
  }

  frame(number) {
    const wanted = Math.min(Math.max(number, this.first), this.last);
    const segment = this.#segments.findLast((candidate) => candidate.first <= wanted);
    return segment.frames[wanted - segment.first];
  }

  #forget(now) {
    // The latest segment always stays: it is what is being written.
    while (this.#segments.length > 1 &&
           (this.#segments[1].frames[0].seconds < now - this.seconds || this.bytes > this.maxBytes)) {
      if (this.#cursor?.segment === this.#segments[0]) this.#cursor = null;
      this.#segments.shift();
    }
  }
}

/** A map's state, brought up to date by frames. */
export class LiveState {
  tiers = new Map();

  /** Takes a frame in; returns name → changed cells, null for all of them. */
  apply(frame) {
    const changed = new Map();
    if (frame.kind === "all") this.tiers = new Map();
    for (const change of frame.tiers) {
      if (change.cells === null) {
        this.tiers.set(change.name, TierState.like(change));
      } else {
        this.tiers.get(change.name).apply(change);
      }
      changed.set(change.name, change.cells);
    }
    return changed;
  }
}
