
"use strict";
(() => {
const STEP = 100; // rows drawn at a time
const RANK = { failed: 0, pending: 1, trusted: 2 };
const of = (id) => document.getElementById(id);
const tell = (element, text) => { if (element.textContent !== text) element.textContent = text; };
document.documentElement.classList.add("script");
// The only text that is read as HTML is what the controller has escaped.
const policy = window.trustedTypes ? trustedTypes.createPolicy("parts", { createHTML: (text) => text }) : { createHTML: (text) => text };

// Parts of the page: what is the same stays the same element, so that focus, selection and open details stay.

function morph(old, now) {
  const keep = ["open"];
  for (const { name } of [...old.attributes]) if (!now.hasAttribute(name) && !keep.includes(name)) old.removeAttribute(name);
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value && !keep.includes(name)) old.setAttribute(name, value);
  children(old, now);
}
function children(old, now) {
  const wanted = [...now.childNodes];
  wanted.forEach((next, at) => {
    // What has a name is looked for by it, so that an element that comes or goes does not move the others.
    const named = next.id && [...old.children].find((child) => child.id === next.id);
    if (named && named !== old.childNodes[at]) old.insertBefore(named, old.childNodes[at] || null);
    const there = old.childNodes[at];
    if (!there) old.append(next);
    else if (there.nodeType === 1 && next.nodeType === 1 && there.tagName === next.tagName && there.id === next.id) morph(there, next);
    else if (there.nodeType === 3 && next.nodeType === 3) { if (there.data !== next.data) there.data = next.data; }
    else if (there.id) old.insertBefore(next, there);
    else there.replaceWith(next);
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}
function showPart(id, html) {
  const parsed = new DOMParser().parseFromString(policy.createHTML(`<div id="${id}">${html}</div>`), "text/html");
  children(of(id), parsed.getElementById(id));
}

// Agents.

const agents = new Map(); // by host
let sorted = [], matching = [], drawn = STEP, serverAhead = 0;
const search = of("search"), role = of("role"), body = of("rows");

const digits = /\d+/g;
function take(rows, gone) {
  for (const host of gone) agents.delete(host);
  for (const row of rows) {
    const entry = agents.get(row.host) || {};
    entry.row = row;
    entry.text = `${row.host} ${row.state} ${row.role} ${row.detail} ${row.sysctl}`.toLowerCase();
    // Numbers by their size, what needs somebody first.
    entry.key = `${RANK[row.state]} ${row.host.replace(digits, (number) => number.padStart(12, "0"))}`;
    entry.stale = true;
    agents.set(row.host, entry);
  }
  sorted = [...agents.values()].sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
  const counts = { "": sorted.length, failed: 0, pending: 0, trusted: 0 };
  for (const { row } of sorted) counts[row.state] += 1;
  for (const input of document.querySelectorAll("#states input")) tell(input.parentElement.querySelector("b"), counts[input.value].toLocaleString("en"));
}
function pick() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = document.querySelector("#states input:checked").value;
  matching = sorted.filter(({ row, text }) => (!state || row.state === state) && (!role.value || row.role === role.value) && words.every((word) => text.includes(word)));
  draw();
}
function ago(then) {
  const seconds = Math.max(0, Math.round(Date.now() / 1000 + serverAhead - then));
  return seconds < 60 ? `${seconds} s ago` : seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : seconds < 172800 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} days ago`;
}
function line(entry) {
  if (!entry.tr) {
    entry.tr = document.createElement("tr");
    entry.tr.setAttribute("role", "row");
    for (let cell = 0; cell < 6; cell++) {
      const one = document.createElement(cell ? "td" : "th");
      one.setAttribute("role", cell ? "cell" : "rowheader");
      if (!cell) one.scope = "row";
      entry.tr.append(one);
    }
  }
  const { row, tr: { cells } } = entry;
  if (entry.stale) {
    [row.host, row.state, row.role, row.detail, row.sysctl].forEach((text, cell) => tell(cells[cell], text));
    cells[1].className = row.state;
    cells[5].title = row.proven ? new Date(row.proven * 1000).toLocaleString() : "";
    entry.stale = false;
  }
  tell(cells[5], row.proven ? ago(row.proven) : "none");
  return entry.tr;
}
function draw() {
  const rows = matching.slice(0, drawn).map(line);
  if (!rows.length) {
    const none = document.createElement("tr"), cell = document.createElement("td");
    cell.colSpan = 6;
    cell.textContent = sorted.length ? "No agent matches." : "No agent is known yet.";
    none.append(cell);
    rows.push(none);
  }
  const wanted = new Set(rows);
  for (const row of [...body.children]) if (!wanted.has(row)) row.remove();
  rows.forEach((row, at) => { if (body.children[at] !== row) body.insertBefore(row, body.children[at] || null); });
  const all = sorted.length.toLocaleString("en");
  tell(of("count"), matching.length === sorted.length ? `${all} agents` : `${matching.length.toLocaleString("en")} of ${all} agents`);
}
function filter() {
  drawn = STEP;
  of("scroll").scrollTop = 0;
  pick();
}
search.addEventListener("input", filter);
role.addEventListener("change", filter);
of("states").addEventListener("change", filter);
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
of("scroll").addEventListener("scroll", ({ target }) => {
  if (drawn < matching.length && target.scrollTop + 2 * target.clientHeight > target.scrollHeight) { drawn += STEP; draw(); }
}, { passive: true });
setInterval(() => { if (sorted.length && !document.hidden) draw(); }, 10000);

// Images, when somebody asks for them.

const images = [];
let next = "";
async function loadImages() {
  const buttons = [of("load"), of("more")];
  for (const button of buttons) button.disabled = true;
  tell(of("image-count"), "Loading …");
  try {
    const answer = await fetch(`v1/images?last=${encodeURIComponent(next)}`, { cache: "no-store" });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 300).trim() || `status ${answer.status}`);
    const page = await answer.json();
    images.push(...page.images);
    next = page.next || "";
    of("load").hidden = true;
    of("more").hidden = !next;
    of("image-scroll").hidden = false;
    for (const label of document.querySelectorAll("#browse label")) label.hidden = false;
    drawImages();
  } catch (error) {
    tell(of("image-count"), `The images cannot be listed: ${error.message}`);
  }
  for (const button of buttons) button.disabled = false;
}
function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; number >= 1000 && unit < 4; unit++) number /= 1000;
  return `${unit && number < 10 ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
}
function cell(tag, text, into) {
  const element = document.createElement(tag);
  element.textContent = text;
  into.append(element);
  return element;
}
function drawImages() {
  const words = of("image-search").value.toLowerCase().split(/\s+/).filter(Boolean), only = of("unreadable").checked;
  const found = images.filter((image) => (!only || image.unreadable) && words.every((word) => `${image.repository}:${image.tag}`.toLowerCase().includes(word)));
  const rows = document.createDocumentFragment();
  let repository = null;
  // The search narrows it down; nobody reads more rows than these.
  for (const image of found.slice(0, 500)) {
    if (image.repository !== repository) {
      repository = image.repository;
      const tr = document.createElement("tr");
      tr.className = "repository";
      const th = cell("th", repository, tr);
      th.scope = "rowgroup";
      th.colSpan = 4;
      rows.append(tr);
    }
    const tr = document.createElement("tr");
    cell("th", image.tag, tr).scope = "row";
    cell("td", bytes(image.size), tr);
    const digest = cell("td", "", tr);
    cell("code", image.digest.slice(0, 19), digest).title = image.digest;
    const verdict = cell("td", image.unreadable ? `no: ${image.unreadable}` : "yes", tr);
    verdict.className = image.unreadable ? "failed" : "trusted";
    if (image.fix) cell("div", image.fix, verdict).className = "remedy";
    rows.append(tr);
  }
  of("image-rows").replaceChildren(rows);
  const repositories = new Set(images.map((image) => image.repository)).size;
  const total = `${images.length} tags in ${repositories} repositories${next ? " so far" : ""}`;
  tell(of("image-count"), !images.length ? "There are no images yet." : found.length > 500 ? `${found.length} of ${total}, the first 500 shown` : found.length < images.length ? `${found.length} of ${total}` : total);
}
of("load").addEventListener("click", loadImages);
of("more").addEventListener("click", loadImages);
of("image-search").addEventListener("input", drawImages);
of("unreadable").addEventListener("change", drawImages);

// Copying, also where the page came by plain HTTP and the browser has no clipboard for it.

document.addEventListener("click", async ({ target }) => {
  const button = target.closest && target.closest("button.copy");
  if (!button) return;
  const text = button.parentElement.querySelector("pre");
  let done = false;
  try {
    await navigator.clipboard.writeText(text.textContent);
    done = true;
  } catch {
    const chosen = getSelection();
    chosen.selectAllChildren(text);
    done = document.execCommand("copy");
    if (done) chosen.removeAllRanges();
  }
  button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input:not([type=radio]):not([type=checkbox]), select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape" && event.target === search && search.value) {
    search.value = "";
    filter();
  }
});

// News: pushed where that works, else asked for.

const shown = {};
function news(text) {
  const { now, parts, agents: rows, gone, whole } = JSON.parse(text);
  serverAhead = now - Date.now() / 1000;
  for (const [id, html] of Object.entries(parts)) if (shown[id] !== html) { showPart(id, html); shown[id] = html; }
  if (whole) {
    const hosts = new Set(rows.map((row) => row.host));
    for (const host of [...agents.keys()]) if (!hosts.has(host)) gone.push(host);
  }
  if (whole || rows.length || gone.length) { take(rows, gone); pick(); }
  heard = Date.now();
}
function link(text, lost) {
  tell(of("link"), text);
  of("link").classList.toggle("lost", !!lost);
}
let source = null, heard = Date.now(), timer = 0, polls = 0;
const lost = () => link(`No answer since ${new Date(heard).toLocaleTimeString()}; trying again. What is below may be old.`, true);
function stop() {
  if (source) source.close();
  source = null;
  clearTimeout(timer);
}
// What comes through a proxy that holds answers back until they end does not come at all.
function watch(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(() => { stop(); poll(); }, milliseconds);
}
function listen() {
  stop();
  source = new EventSource("v1/events");
  source.onmessage = ({ data }) => { news(data); link("Live"); watch(30000); };
  source.addEventListener("beat", () => { heard = Date.now(); link("Live"); watch(30000); });
  source.onerror = () => {
    if (source && source.readyState === EventSource.CLOSED) { stop(); poll(); } else lost();
  };
  watch(6000);
}
async function poll() {
  // The whole of a large cluster is large.
  const pause = agents.size > 1000 ? 30 : 5;
  try {
    const answer = await fetch("v1/events?once=true", { cache: "no-store", redirect: "error" });
    if (answer.status === 401 || answer.status === 403) { link("The cluster wants a new login: load the page again.", true); return; }
    const line = answer.ok && (await answer.text()).split("\n").find((line) => line.startsWith("data: {"));
    if (!line) throw new Error();
    news(line.slice(6));
    link(`Asks every ${pause} s`);
  } catch { lost(); }
  clearTimeout(timer);
  polls += 1;
  // It may have been a restart only.
  if (!document.hidden) timer = setTimeout(polls % 12 ? poll : listen, pause * 1000);
}
// A page that nobody sees takes nobody's place.
document.addEventListener("visibilitychange", () => { if (document.hidden) { stop(); link("Paused"); } else listen(); });
window.addEventListener("pagehide", stop);
listen();
})();
