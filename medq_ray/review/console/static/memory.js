// What outlives a reload of this tab: drafts and active time by lease, and what was given in this sitting.

const GIVEN = "medq given";
const key = (token) => `medq lease ${token}`;
const read = (name, otherwise) => JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
const write = (name, value) => sessionStorage.setItem(name, JSON.stringify(value));

/** {seconds, draft: text of an edit that is not sent, or undefined} */
export const recall = (token) => read(key(token), { seconds: 0 });

export function remember(token, changed) {
  write(key(token), { ...recall(token), ...changed });
}

export function forget(token) {
  sessionStorage.removeItem(key(token));
}

/** Something was given: a verdict, or a skip or flag, which the pace leaves out. */
export function add(event, action, seconds) {
  write(GIVEN, [...read(GIVEN, []), { event, action, seconds }]);
}

/** The event that was given last, undefined for none. */
export const last = () => read(GIVEN, []).at(-1)?.event;

export function takeBack() {
  write(GIVEN, read(GIVEN, []).slice(0, -1));
}

/** {count, perHour: of active time, median: seconds} of this sitting's verdicts, null before the first. */
export function pace() {
  const seconds = read(GIVEN, [])
    .filter((one) => one.action !== "skip" && one.action !== "flag")
    .map((one) => one.seconds)
    .sort((a, b) => a - b);
  if (!seconds.length) {
    return null;
  }
  const sum = seconds.reduce((total, one) => total + one, 0);
  const middle = (seconds.length - 1) / 2;
  const median = (seconds[Math.floor(middle)] + seconds[Math.ceil(middle)]) / 2;
  return { count: seconds.length, perHour: (3600 * seconds.length) / Math.max(sum, 1), median };
}
