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

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    throw new Unreachable("the server cannot be reached");
  }
  if (response.status === 401) {
    session.over = true;
    location.assign("/login");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({ error: `the server failed (${response.status})` }));
    throw new (response.status >= 500 || LATER.includes(response.status) ? Unreachable : Refused)(told.error);
  }
  return response;
}

export async function get(path) {
  return (await ask(path)).json();
}

/** keepalive: it goes on when the page is left. */
export async function post(path, body = undefined, keepalive = false) {
  const headers = { "X-CSRF": meta("csrf"), "Content-Type": "application/json" };
  const response = await ask(path, { method: "POST", headers, keepalive, body: body && JSON.stringify(body) });
  return response.status === 204 ? null : response.json();
}

/** An image in all its bits: {numbers: Uint16Array, width_px, height_px, and what they mean}. */
export async function depth(path) {
  const response = await ask(path);
  const meaning = JSON.parse(response.headers.get("X-Depth"));
  return { ...meaning, numbers: new Uint16Array(await response.arrayBuffer()) }; // little-endian, as all browsers are
}

/** An image, decoded. */
export async function picture(path) {
  return createImageBitmap(await (await ask(path)).blob());
}
