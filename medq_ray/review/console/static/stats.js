// Keeps the statistics fresh: the page as the server makes it now takes the place of the tables.

const EVERY = 10_000;

async function refresh() {
  const response = await fetch("/stats");
  if (response.redirected || !response.ok) {
    location.assign("/login");
    return;
  }
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  document.getElementById("tables").replaceWith(document.adoptNode(fresh.getElementById("tables")));
}

setInterval(() => document.hidden || refresh().catch(() => {}), EVERY); // without the server the last numbers stay
