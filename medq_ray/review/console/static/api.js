// The console's JSON interface. Who is not logged in any more is sent to the login page.

const csrf = document.querySelector('meta[name="csrf"]').content;

export class Refused extends Error {}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The server cannot be reached: nothing was saved, try again.");
  }
  if (response.status === 401) {
    location.assign("/login");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({ error: `The server failed (${response.status}).` }));
    throw new Refused(told.error);
  }
  return response;
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path, body = undefined) {
  const headers = { "X-CSRF": csrf, "Content-Type": "application/json" };
  const response = await ask(path, { method: "POST", headers, body: body && JSON.stringify(body) });
  return response.status === 204 ? null : response.json();
}

/** An image, decoded. */
export async function picture(path) {
  return createImageBitmap(await (await ask(path)).blob());
}
