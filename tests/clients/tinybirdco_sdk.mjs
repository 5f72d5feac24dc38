// @tinybirdco/sdk against the API: prints what it was answered as one JSON object.
import { writeFileSync } from "node:fs";
import { createJWT, createTinybirdApi, TinybirdApiError } from "@tinybirdco/sdk";

const { API_URL: baseUrl, TOKEN: token, SCRATCH: scratch } = process.env;
const api = createTinybirdApi({ baseUrl, token });
const event = (id) => ({
  event_id: id,
  event_type: "ts-sdk",
  event_time: "2025-05-11 22:01:58.123",
  properties: { screen: "home", n: 1n },
});
const refusal = async (promise) => {
  try {
    return { answered: await promise };
  } catch (error) {
    return { known: error instanceof TinybirdApiError, status: error.statusCode, message: error.message };
  }
};
const told = {};
told.one = await api.ingest("app_events", event("ts-1"));
told.batch = await api.ingestBatch("app_events", [event("ts-2"), { event_id: "ts-bad" }], { wait: false });
told.query = await api.query("events_by_type", { start_date: "2025-05-11 00:00:00", app_version: undefined });
told.sql = await api.sql("SELECT count() AS n FROM app_events WHERE startsWith(event_id, 'ts-')");
const file = `${scratch}/events.ndjson`;
writeFileSync(file, JSON.stringify(event("ts-file"), (_, value) => (typeof value === "bigint" ? Number(value) : value)));
told.append = await api.appendDatasource("app_events", { file });
told.dryRun = await api.deleteDatasource("app_events", { deleteCondition: "event_type = 'ts-sdk'", dryRun: true });
told.delete = await api.deleteDatasource("app_events", { deleteCondition: "event_type = 'ts-sdk'" });
told.truncate = await api.truncateDatasource("app_events");
const jwt = await createJWT(
  { baseUrl, token },
  {
    name: "ts",
    expiresAt: new Date(Date.now() + 60_000),
    scopes: [{ type: "PIPES:READ", resource: "events_by_type", fixed_params: { app_version: "none" } }],
    limits: { rps: 10 },
  },
);
told.jwt = await api.query("events_by_type", { app_version: "all" }, { token: jwt.token });
told.otherPipe = await refusal(api.query("user_sessions", {}, { token: jwt.token }));
told.badParameter = await refusal(api.query("events_by_type", { start_date: "yesterday" }));
told.badToken = await refusal(api.query("events_by_type", {}, { token: "wrong" }));
told.badSql = await refusal(api.sql("SELECT nowhere"));
told.badUrl = await refusal(api.appendDatasource("app_events", { url: "http://127.0.0.1:1/x.csv" }));
told.badReplace = await refusal(api.appendDatasource("app_events", { file }, { mode: "replace" }));
console.log(JSON.stringify(told));
