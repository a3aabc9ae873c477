// The page of kpng. It asks api/… of the process that served it, shows the answers as text, and asks
// again every few seconds. What is on the screen is only touched where it differs, so what somebody
// reads, selects or types stays.
"use strict";

// Milliseconds.
const REFRESH = 3000;
const TYPING = 150;
const PATIENCE = 20000;

const byId = (id) => document.getElementById(id);

// ---- Elements ----

// An element with attributes and children; texts are only ever texts.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

// Makes what `parent` contains equal to `wanted`, and leaves alone what is equal already.
function show(parent, ...wanted) {
  const made = element("div", null, ...wanted);
  conform(parent, made);
}

function conform(old, made) {
  const wanted = [...made.childNodes];
  wanted.forEach((child, index) => {
    const present = old.childNodes[index];
    if (!present) {
      old.append(child);
    } else if (present.nodeType !== child.nodeType || present.nodeName !== child.nodeName) {
      present.replaceWith(child);
    } else if (present.nodeType === Node.TEXT_NODE) {
      if (present.data !== child.data) present.data = child.data;
    } else if (!present.isEqualNode(child)) {
      for (const { name } of [...present.attributes]) {
        if (!child.hasAttribute(name)) present.removeAttribute(name);
      }
      for (const { name, value } of [...child.attributes]) {
        if (present.getAttribute(name) !== value) present.setAttribute(name, value);
      }
      conform(present, child);
    }
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function table(caption, heads, rows) {
  const cell = (name, extra) => (content) => {
    const isCell = content && content.cell !== undefined;
    const attributes = { ...extra, class: isCell ? content.class : null };
    return element(name, attributes, isCell ? content.cell : content);
  };
  return element("div", { class: "wide" }, element("table", { "aria-label": caption },
    element("thead", null, element("tr", null, heads.map(cell("th", { scope: "col" })))),
    element("tbody", null, rows.map((row) => element("tr", null, row.map(cell("td")))))));
}

const number = (cell) => ({ cell: String(cell), class: "number" });
const names = (list) => ({ cell: element("ul", null, list.map((item) => element("li", null, item))), class: "names" });
const code = (text) => element("code", null, text);
const span = (kind, text) => element("span", { class: kind }, text);
const plural = (count, one, many = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function facts(list) {
  return element("dl", null, list.filter(Boolean).map(([name, ...what]) =>
    [element("dt", null, name), element("dd", null, ...what)]));
}

function pager(page, pages, address) {
  if (pages <= 1) return null;
  const link = (to, text, rel) => to >= 1 && to <= pages
    ? element("a", { href: address(to), rel }, text)
    : span("quiet", text);
  return element("nav", { class: "pager", "aria-label": "Pages of the table" },
    link(page - 1, "Previous", "prev"), span("quiet", `page ${page} of ${pages}`), link(page + 1, "Next", "next"));
}

// ---- Addresses ----

// #/services/NAMESPACE/NAME?page=2 as steps and parameters.
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const steps = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { steps: steps.length ? steps : ["services"], parameters: new URLSearchParams(query ?? "") };
}

function address(steps, parameters) {
  const query = new URLSearchParams(Object.entries(parameters ?? {}).filter(([, value]) => value)).toString();
  return `#/${steps.map(encodeURIComponent).join("/")}${query ? "?" + query : ""}`;
}

const serviceLink = ({ namespace, name }) =>
  element("a", { href: address(["services", namespace, name]) }, `${namespace}/${name}`);

async function ask(path, parameters) {
  const query = new URLSearchParams(parameters ?? {}).toString();
  let response;
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    response = await fetch(`api/${path}${query ? "?" + query : ""}`, { signal });
  } catch {
    throw new Error("kpng does not answer. This page goes on when it does.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `kpng answers with ${response.status}`);
  return answer;
}

// ---- Status ----

function clock(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  const text = isToday ? date.toLocaleTimeString() : date.toLocaleString();
  return element("time", { datetime: time, title: date.toString() }, text);
}

function showStatus(status) {
  document.title = `${status.node} · kpng`;
  show(byId("where"), `${status.node}, ${status.backend.name}`);
  const [kind, text] =
    status.failure ? ["bad", "the last update of the kernel failed"]
    : !status.source.complete ? ["warn", "waiting for the complete state"]
    : !status.ready ? ["warn", "starting"]
    : !status.healthy ? ["bad", "an update is stuck"]
    : status.source.problem ? ["warn", "cut off from its source"]
    : status.backlog > 0 ? ["warn", "updating"]
    : ["good", `${plural(status.sync?.services ?? 0, "service")} in force`];
  show(byId("state"), span(kind, `● ${text}`));
}

function showNode(status) {
  const { source, sync, backend } = status;
  const trouble = [
    status.failure && span("bad", status.failure),
    source.problem && span("warn", source.problem),
    ...status.gaps.filter((gap) => gap.services > 0).map((gap) =>
      span("warn", `${plural(gap.services, "service needs", "services need")} ${gap.what}, which this backend cannot do (${gap.why})`)),
  ].filter(Boolean);
  show(byId("node"), element("h2", null, status.node), facts([
    ["backend", `${backend.name}: ${backend.about}`],
    ["health", status.healthy ? span("good", "healthy") : span("bad", "unhealthy"), status.ready ? ", ready" : ", not ready yet"],
    trouble.length > 0 && ["trouble", element("ul", { class: "notes" }, trouble.map((item) => element("li", null, item)))],
    ["source", source.complete
      ? `complete, revision ${source.revision}: ${plural(source.services, "service")}, ${plural(source.nodes, "node")}`
      : "not complete yet"],
    source.lastContact && ["last heard of", clock(source.lastContact)],
    ["in force", sync ? [`revision ${sync.revision}, since `, clock(sync.at), `, after ${sync.milliseconds.toFixed(1)} ms (${sync.full ? "all services" : plural(sync.changed, "service")})`] : "nothing yet"],
    ["backlog", plural(status.backlog, "revision")],
    ["conflicts", status.conflicts ? span("warn", `${plural(status.conflicts, "claim")} to frontends that another service has`) : "none"],
    ...status.facts.map((line) => {
      const at = line.indexOf(": ");
      return at < 0 ? ["also", line] : [line.slice(0, at), line.slice(at + 2)];
    }),
    ["version", status.version],
    ["numbers", element("a", { href: "metrics" }, "metrics")],
  ]));
}

// ---- Services ----

const policyText = (service) => [
  service.internalTrafficPolicy === "Local" && "internal Local",
  service.externalTrafficPolicy === "Local" && "external Local",
  service.affinitySeconds !== null && `ClientIP ${service.affinitySeconds} s`,
].filter(Boolean).join(", ");

function endpointsText({ all, ready, serving, chosen }) {
  if (all === 0) return span("warn", "none");
  const text = [
    `${ready} ready`,
    serving !== ready && `${serving} serving`,
    chosen !== all && `${all - chosen} of ${all} not chosen`,
  ].filter(Boolean).join(", ");
  return chosen === 0 ? span("warn", text) : text;
}

function showServices(answer, search) {
  const { services, found, all, page, pages } = answer;
  show(byId("found"), span("quiet", found === all ? plural(all, "service") : `${found.toLocaleString("en")} of ${plural(all, "service")}`));
  const rows = services.map((service) => [
    serviceLink(service),
    service.type,
    policyText(service),
    names([
      ...service.frontends.names.map(code),
      service.frontends.count > service.frontends.names.length && `and ${service.frontends.count - service.frontends.names.length} more`,
    ].filter(Boolean)),
    endpointsText(service.endpoints),
  ]);
  show(byId("list"),
    rows.length
      ? table("Services", ["Service", "Type", "Policies", "Frontends", "Endpoints"], rows)
      : element("p", { class: "quiet" }, search ? "No service is found." : "There is no service."),
    pager(page, pages, (to) => address(["services"], { search, page: to })));
}

function actionText(action) {
  switch (action.is) {
    case "forward":
      return `to ${plural(action.endpoints, "endpoint")}${action.masquerade ? ", masqueraded" : ""}`;
    case "reject":
      return span("warn", "rejected");
    default:
      return span("warn", "dropped");
  }
}

function routeText(frontend, key) {
  if (frontend.owner === null) return span("warn", "not served");
  if (frontend.owner !== key) return [span("warn", "not served: belongs to "), frontend.owner];
  const { pod, node, outside } = frontend.from;
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const text = same(pod, node) && same(node, outside)
    ? [actionText(pod)]
    : [["pods", pod], ["this node", node], ["outside", outside]].map(([who, action]) =>
      element("div", null, `${who}: `, actionText(action)));
  if (frontend.sources !== null) {
    text.push(element("div", { class: "quiet" }, `only from ${frontend.sources.join(", ") || "nobody"}`));
  }
  return text;
}

function explainLink(frontend) {
  if (!frontend.address) return null;
  const { address: destination, port, protocol } = frontend;
  return element("a", { href: address(["explain"], { source: "node", destination, port, protocol }) }, "explain");
}

const socket = (endpoint) => {
  const host = endpoint.address.includes(":") ? `[${endpoint.address}]` : endpoint.address;
  return endpoint.port === null ? endpoint.address : `${host}:${endpoint.port}`;
};

function conditionsText({ ready, serving, terminating }) {
  if (terminating) return serving ? "terminating, serving" : "terminating";
  if (ready) return "ready";
  return serving ? "serving, not ready" : "not ready";
}

function chosenText(endpoint, lists) {
  const why = lists.map((list) => [list, endpoint.excluded[list]]);
  if (why.length === 0) return span("quiet", "no frontend");
  const text = (reason) => reason === null ? span("good", "may be chosen") : span("quiet", reason.text);
  const areAlike = why.every(([, reason]) => reason?.name === why[0][1]?.name);
  if (areAlike) return text(why[0][1]);
  return why.map(([list, reason]) => element("div", null, `${list} list: `, text(reason)));
}

function endpointsTable(port, family) {
  const place = (endpoint) => [
    endpoint.node ?? (endpoint.local ? "" : "elsewhere"),
    endpoint.local ? " (this node)" : "",
    endpoint.zone ? `, ${endpoint.zone}` : "",
  ].join("");
  const hints = (endpoint) => [...endpoint.forZones, ...endpoint.forNodes].join(" ");
  const rows = family.page.map((endpoint) => [
    code(socket(endpoint)),
    endpoint.pod ?? "",
    place(endpoint),
    hints(endpoint),
    conditionsText(endpoint.conditions),
    chosenText(endpoint, family.lists),
  ]);
  return [
    element("p", { class: "quiet" }, `${family.family}: ${family.chosen} of ${plural(family.all, "endpoint")} may be chosen`),
    rows.length > 0 && table(`${family.family} endpoints of port ${port.port}`, ["Endpoint", "Pod", "Node, zone", "Hinted for", "State", "Chosen"], rows),
  ].filter(Boolean);
}

function trafficText(traffic) {
  if (!traffic) return "not counted";
  const { connections, rejected, dropped } = traffic;
  const packets = (count, what) => count === null ? null : `${plural(count, "packet")} ${what}`;
  return [plural(connections, "new connection"), packets(rejected, "rejected"), packets(dropped, "dropped")]
    .filter(Boolean).join(", ");
}

function portSection(port, key) {
  const frontends = port.frontends.map((frontend) => [
    code(frontend.is), code(frontend.field), frontend.trafficPolicy, routeText(frontend, key), explainLink(frontend),
  ]);
  return element("section", { "aria-label": `Port ${port.port}/${port.protocol}` },
    element("h3", null, `Port ${port.port}/${port.protocol}`, port.name ? ` ${port.name}` : ""),
    element("p", { class: "quiet" }, `traffic here: ${trafficText(port.traffic)}`),
    frontends.length
      ? table(`Frontends of port ${port.port}`, ["Frontend", "From", "Policy", "Packets", ""], frontends)
      : element("p", { class: "quiet" }, "no frontend"),
    port.endpoints.length
      ? port.endpoints.map((family) => endpointsTable(port, family))
      : element("p", { class: "warn" }, "no endpoint"));
}

function showService(service) {
  const key = `${service.namespace}/${service.name}`;
  const notes = [
    ...service.conflicts,
    ...(service.warnings ?? []),
    ...(service.gaps ?? []).map((gap) => `this backend cannot do ${gap.what}: ${gap.why}`),
  ];
  show(byId("service"),
    element("h2", null, key),
    facts([
      ["type", service.type],
      ["traffic policy", `internal ${service.internalTrafficPolicy}, external ${service.externalTrafficPolicy}`],
      service.affinitySeconds !== null && ["affinity", `ClientIP, ${service.affinitySeconds} s`],
      service.healthCheck && ["health check", `node port ${service.healthCheck.port}: ${plural(service.healthCheck.localReady, "endpoint")} ready on this node`],
    ]),
    notes.length ? element("ul", { class: "notes warn" }, notes.map((note) => element("li", null, note))) : null,
    service.ports.map((port) => portSection(port, key)),
    pager(service.page, service.pages, (to) => address(["services", service.namespace, service.name], { page: to })));
}

// ---- Changes ----

const list = ({ count, names }) => count === 0 ? null
  : names.join(", ") + (count > names.length ? ` and ${count - names.length} more` : "");

function changeText(change) {
  const parts = (what) => Object.entries(what).map(([verb, objects]) => [verb, list(objects)]).filter(([, text]) => text);
  switch (change.is) {
    case "added":
    case "removed":
    case "changed": {
      const lines = [
        ...parts(change.frontends).map(([verb, text]) => `frontends ${verb}: ${text}`),
        ...parts(change.endpoints).map(([verb, text]) => `endpoints ${verb}: ${text}`),
      ];
      return lines.length ? names(lines) : span("quiet", "nothing that packets notice");
    }
    case "many":
      return names(Object.entries(change.services).filter(([, objects]) => objects.count > 0)
        .map(([verb, objects]) => `${plural(objects.count, "service")} ${verb}: ${list(objects)}`));
    case "node":
      return "what is known of the node itself";
    case "disturbed":
      return span("warn", "somebody else changed kpng's objects in the kernel; they are repaired");
    default:
      return span(change.is === "failed" ? "bad" : "warn", change.text);
  }
}

function showChanges({ changes, count }) {
  const rows = changes.map((change) => [
    clock(change.at),
    change.service ? serviceLink(change.service) : "",
    change.is,
    changeText(change),
  ]);
  show(byId("changes"),
    element("h2", null, "What changed lately"),
    rows.length
      ? table("Changes", ["When", "Service", "What", "How"], rows)
      : element("p", { class: "quiet" }, "Nothing yet."),
    count > changes.length ? element("p", { class: "quiet" }, `The last ${changes.length} of ${count.toLocaleString("en")}.`) : null);
}

// ---- Explain ----

const FIELDS = ["source", "interface", "destination", "port", "protocol"];

function question(parameters) {
  return Object.fromEntries(FIELDS.map((name) => [name, (parameters.get(name) ?? "").trim()]).filter(([, value]) => value));
}

const command = ({ source, destination, port, protocol, interface: name }) => {
  const host = destination.includes(":") ? `[${destination}]` : destination;
  return `kpng explain ${source} ${host}:${port}/${protocol ?? "TCP"}${name ? ` --interface ${name}` : ""}`;
};

// ---- What is where ----

// Each shows what the process says now; `parameters` are those of the address.
const VIEWS = {
  async services({ parameters, entered }) {
    const search = parameters.get("search") ?? "";
    if (entered && byId("query").value.trim() !== search) byId("query").value = search;
    const answer = await ask("services", { search, page: parameters.get("page") ?? "1" });
    return () => showServices(answer, search);
  },
  async service({ steps, parameters }) {
    const answer = await ask(`services/${steps.slice(1).map(encodeURIComponent).join("/")}`, { page: parameters.get("page") ?? "1" });
    return () => showService(answer);
  },
  async changes() {
    const answer = await ask("changes");
    return () => showChanges(answer);
  },
  async explain({ parameters, entered }) {
    const asked = question(parameters);
    if (entered) {
      for (const name of FIELDS) byId(name).value = asked[name] ?? (name === "protocol" ? "TCP" : "");
    }
    const isWhole = asked.source && asked.destination && asked.port;
    const answer = isWhole ? await ask("explain", asked) : null;
    return () => {
      byId("answer").hidden = byId("command").hidden = !answer;
      if (!answer) return;
      show(byId("command"), code(command(asked)));
      show(byId("answer"), answer.text);
    };
  },
  async node({ status }) {
    return () => showNode(status);
  },
};

function viewOf({ steps }) {
  if (steps[0] === "services" && steps.length > 1) return "service";
  return steps[0] in VIEWS && steps.length === 1 ? steps[0] : null;
}

// What an answer depends on beside the address, where that is known: it need not be asked for again as
// long as that is the same. An explanation is of the moment when somebody asked.
const VERSIONS = {
  services: ({ source, facts }) => [source.revision, facts],
  changes: ({ changes }) => changes,
  explain: () => 0,
};

let round = 0;
let timer;
let shown;

// Asks and shows. Only the latest round counts. `entered`: somebody went to this address just now.
async function refresh(entered) {
  const mine = ++round;
  clearTimeout(timer);
  const here = place();
  const view = viewOf(here);
  const problem = byId("problem");
  for (const link of document.querySelectorAll("header nav a")) {
    const isCurrent = link.getAttribute("href") === `#/${here.steps[0]}`;
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  let text = "";
  let render = () => {};
  let now;
  try {
    const status = await ask("status").catch((error) => {
      if (mine === round) show(byId("state"), span("bad", "● no answer"));
      throw error;
    });
    if (mine !== round) return;
    showStatus(status);
    if (!view) throw new Error("There is nothing at this address.");
    now = VERSIONS[view] ? JSON.stringify([location.hash, VERSIONS[view](status)]) : undefined;
    if (entered || now === undefined || now !== shown) {
      render = await VIEWS[view]({ ...here, status, entered });
    }
  } catch (error) {
    text = error.message;
  }
  if (mine !== round) return;
  render();
  shown = text === "" ? now : undefined;
  problem.hidden = text === "";
  show(problem, span("bad", text));
  for (const name of Object.keys(VIEWS)) byId(name).hidden = name !== view;
  // What cannot be had (any more) is not shown as if it were so. A search can be mended.
  if (text !== "" && view === "service") byId("service").hidden = true;
  if (text !== "" && view === "explain") byId("answer").hidden = byId("command").hidden = true;
  if (entered && view === "service") byId("main").focus({ preventScroll: false });
  timer = setTimeout(refresh, REFRESH, false);
}

function go(to) {
  if (location.hash === to) refresh(true);
  else location.hash = to;
}

let typing;
byId("query").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    // What is typed is one place in the history, not one for each letter.
    history.replaceState(null, "", address(["services"], { search: byId("query").value.trim() }));
    refresh(false);
  }, TYPING);
});
byId("search").addEventListener("submit", (event) => event.preventDefault());
byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  go(address(["explain"], question(new Map(form))));
});
addEventListener("hashchange", () => refresh(true));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else refresh(false);
});
refresh(true);
