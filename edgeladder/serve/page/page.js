"use strict";
// The token comes in the address's fragment, which no browser sends to a server or names as referrer;
// it is kept for this tab only and taken out of the address at once.
const byId = (id) => document.getElementById(id);
const said = byId("said"), labels = byId("labels"), unlock = byId("unlock");
let waiting = null; // a picture that was refused for want of a token
let shown = null; // its object URL

if (location.hash.length > 1) {
  sessionStorage.setItem("token", decodeURIComponent(location.hash.slice(1)));
  history.replaceState(null, "", location.pathname);
}

function say(text, isError) {
  said.textContent = text;
  said.className = isError ? "error" : "";
}

function show(prediction) {
  const rows = prediction.labels.map(({ label, probability }) => {
    const row = document.createElement("tr");
    const meter = document.createElement("meter");
    meter.value = probability;
    for (const content of [label, meter, `${(100 * probability).toFixed(1)} %`]) {
      const cell = document.createElement("td");
      cell.append(content);
      row.append(cell);
    }
    return row;
  });
  labels.tBodies[0].replaceChildren(...rows);
  labels.hidden = false;
  say(prediction.unknown === true ? "None of the known classes, it seems. The nearest are:" : "");
}

async function send(picture) {
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(picture);
  byId("picture").src = shown;
  byId("picture").hidden = false;
  labels.hidden = true;
  say("looking …");
  const headers = { "Content-Type": picture.type || "application/octet-stream" };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    const response = await fetch("predict?top=5", { method: "POST", headers, body: picture });
    const answer = await response.json();
    if (response.ok) return show(answer.predictions[0]);
    if (response.status === 401) {
      waiting = picture;
      unlock.hidden = false;
      byId("token").focus();
    }
    say(answer.error.message, true);
  } catch {
    say("the service does not answer", true);
  }
}

for (const id of ["camera", "file"]) {
  byId(id).addEventListener("change", (event) => {
    const [picture] = event.target.files;
    event.target.value = "";
    if (picture) send(picture);
  });
}

unlock.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("token").value = "";
  unlock.hidden = true;
  if (waiting) send(waiting);
});

fetch("health").then((response) => response.json()).then(({ token }) => {
  unlock.hidden = !token || Boolean(sessionStorage.getItem("token"));
}).catch(() => say("the service does not answer", true));
