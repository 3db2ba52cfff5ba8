// The console's JSON interface. Who is not logged in any more is sent to the login page.

const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;

export const reviewer = meta("reviewer");

/** Whether the page is on its way to the login. */
export const session = { over: false };

/** The server said no: the same again gets the same answer. */
export class Refused extends Error {}

/** Nothing was heard of the server, or that it cannot answer now: later it may. */
export class Unreachable extends Refused {}

const PATIENCE = 20_000; // ms; a network that swallows everything would be waited for endlessly
const LATER = [401, 408, 429]; // as good as no answer, and so is 500 and above

/** What `read` makes of the reply, which may break off as well. */
async function ask(path, options, read) {
  let response, found;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
    found = response.ok ? await read(response) : await response.text();
  } catch {
    throw new Unreachable("the server cannot be reached");
  }
  if (response.status === 401) {
    session.over = true;
    location.assign("/login");
  }
  if (!response.ok) {
    throw new (response.status >= 500 || LATER.includes(response.status) ? Unreachable : Refused)(why(response, found));
  }
  return found;
}

/** The line that says what is wrong: a proxy has none. */
function why({ status }, body) {
  try {
    return JSON.parse(body).error;
  } catch {
    return `the server failed (${status})`;
  }
}

const json = (response) => response.json();

export const get = (path) => ask(path, {}, json);

/** keepalive: it goes on when the page is left. */
export function post(path, body = undefined, keepalive = false) {
  const headers = { "X-CSRF": meta("csrf"), "Content-Type": "application/json" };
  const options = { method: "POST", headers, keepalive, body: body && JSON.stringify(body) };
  return ask(path, options, (response) => (response.status === 204 ? null : response.json()));
}

/** An image in all its bits: {numbers: Uint16Array, width_px, height_px, and what they mean}. */
export function depth(path) {
  return ask(path, {}, async (response) => {
    const meaning = JSON.parse(response.headers.get("X-Depth"));
    return { ...meaning, numbers: new Uint16Array(await response.arrayBuffer()) }; // little-endian, as all browsers are
  });
}

/** An image, decoded. */
export async function picture(path) {
  return createImageBitmap(await ask(path, {}, (response) => response.blob()));
}
