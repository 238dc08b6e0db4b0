// Numbers and reasons, for people.

/** Seconds: 3.1 ms, 0.45 s, 12 s, 3:05 min. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "—";
  if (seconds < 0.0995) return `${number(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
}

/** Three digits at least, and thousands apart. */
export function number(value) {
  if (value >= 99.5 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value >= 9.95 ? value.toFixed(0) : value.toFixed(1);
}

export function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

/** The end of a request's id, which is what differs. */
export function short(name) {
  return name.length <= 13 ? name : `…${name.slice(-10)}`;
}

const REASONS = {
  new: () => "has just come; the next step looks at it",
  blocks: (wait) => wait.short ? `waits for blocks: ${wait.short.toLocaleString("en")} too few are free` : "waits for blocks",
  tenant_ceiling: (wait) => `its tenant holds as many blocks as it may${wait.short ? `: ${wait.short.toLocaleString("en")} too many` : ""}`,
  max_num_seqs: () => "as many sequences run as may at a time",
  token_budget: () => "the step's tokens are used up by those that run",
  preemption: () => "somebody had to give way in this step, so nobody is let in",
  guarantee: () => "gave way as often as may be; waits until it fits to its very end",
  behind: () => "others come first",
  isolation: () => "a step failed; its members run one by one to find out whose fault it was",
};

/** Why a sequence waits. who: what to call the request before it, or null. */
export function waitReason(wait, who) {
  const text = (REASONS[wait.reason] ?? (() => wait.reason))(wait);
  return wait.behind && who ? `${text}, behind ${who}` : text;
}

export function waitState(wait) {
  return { waiting: "", preempted: "gave way, computes again", swapped: "swapped out" }[wait.state] ?? wait.state;
}

const PURPOSES = { growth: "running ones grew", priority: "a more urgent one", isolation: "a suspect alone" };

export function purpose(preemption) {
  return PURPOSES[preemption.reason] ?? preemption.reason;
}
