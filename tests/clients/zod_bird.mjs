// @chronark/zod-bird against the API: it checks every answer with its own schemas. Prints them as one JSON object.
import { Tinybird } from "@chronark/zod-bird";
import { z } from "zod";

const tinybird = new Tinybird({ baseUrl: process.env.API_URL, token: process.env.TOKEN });
const send = tinybird.buildIngestEndpoint({
  datasource: "app_events",
  event: z.object({ event_id: z.string(), event_type: z.string(), event_time: z.string() }),
  wait: true,
});
const count = tinybird.buildPipe({
  pipe: "events_by_type",
  parameters: z.object({ app_version: z.string().optional(), start_date: z.string().optional() }),
  data: z.object({ event_type: z.string(), event_count: z.number() }),
});
const event = (id) => ({ event_id: id, event_type: "zod-bird", event_time: "2025-05-11 22:01:58" });
const told = {};
told.one = await send(event("zod-1"));
told.batch = await send([event("zod-2"), event("zod-3")]);
told.rows = (await count({})).data.filter((row) => row.event_type === "zod-bird");
told.refused = await count({ start_date: "yesterday" }).catch((error) => error.message);
console.log(JSON.stringify(told));
