// A receiver of pgstream_hooks in JavaScript, by Node.js alone: keeps a copy of the tables that it hears of.
//
//     WEBHOOK_SECRET=whsec_… node receiver.mjs 8000
//
// POST takes webhooks; GET shows the rows.

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const secret = Buffer.from(process.env.WEBHOOK_SECRET.replace(/^whsec_/, ""), "base64");

/** Whether the request is signed by our key, and not an old one that somebody sends again. */
function genuine(headers, body) {
  const timestamp = headers["webhook-timestamp"];
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) < 300)) return false;
  const hmac = createHmac("sha256", secret).update(`${headers["webhook-id"]}.${timestamp}.`).update(body);
  const expected = Buffer.from("v1," + hmac.digest("base64"));
  // While a key is changed there are two signatures.
  return (headers["webhook-signature"] ?? "")
    .split(" ")
    .map((part) => Buffer.from(part))
    .some((part) => part.length === expected.length && timingSafeEqual(part, expected));
}

// Rows by table and key. In earnest this is a database: write rows and last ids in one transaction.
const rows = new Map();
const last = new Map(); // id of the last event of each row, also of those that are gone
const emptied = new Map(); // id of the last truncate of each table

/** Applies an event, unless a newer one of its row was here before: ids sort in commit order. */
function apply({ data }) {
  const { id, action } = data;
  const table = JSON.stringify([data.schema, data.table]);
  // Whole numbers beyond 2^53 need a parser that keeps them; JSON.parse rounds them.
  const placeOf = (key) => table + JSON.stringify(key);
  const at = (map, place) => map.get(place) ?? "";
  if (action === "truncate") {
    if (id <= at(emptied, table)) return;
    emptied.set(table, id);
    for (const place of rows.keys()) {
      if (place.startsWith(table) && at(last, place) < id) rows.delete(place);
    }
  } else if (["insert", "update", "delete", "read"].includes(action) && data.key !== null) {
    const place = placeOf(data.key);
    if (id <= at(last, place) || id <= at(emptied, table)) return;
    const old = data.old_key ? placeOf(data.old_key) : place;
    let before = {};
    if (at(last, old) < id) {
      before = rows.get(old) ?? {};
      rows.delete(old);
      last.set(old, id);
    }
    last.set(place, id);
    if (action !== "delete") {
      // Large values that an update left alone are not in the record.
      const kept = data.unchanged.filter((name) => name in before).map((name) => [name, before[name]]);
      rows.set(place, { ...Object.fromEntries(kept), ...data.record });
    }
  } else {
    return;
  }
  console.log(action, data.table, JSON.stringify(data.key));
}

createServer((request, response) => {
  if (request.method === "GET") return response.end(JSON.stringify([...rows.values()]));
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    if (!genuine(request.headers, body)) return response.writeHead(401).end();
    [JSON.parse(body)].flat().forEach(apply);
    // Only now: what is answered with 2xx is not sent again.
    response.writeHead(204).end();
  });
}).listen(Number(process.argv[2]), "127.0.0.1");
