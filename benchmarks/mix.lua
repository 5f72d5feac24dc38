-- What wrk sends: seven calls of endpoints for every three requests of events, each request of events with new ones.
-- The token comes in the environment, so that it stands in no process list.
local headers = { ["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN"), ["Content-Type"] = "application/x-ndjson" }
local bounds = "?start_date=2026-09-03T10:20:30Z&end_date=2026-10-01T07:01:02Z"
local calls = {
  "/v0/pipes/events_by_type.json" .. bounds,
  "/v0/pipes/events_by_type.json",
  "/v0/pipes/events_by_type.csv?app_version=4.3.1",
  "/v0/pipes/user_sessions.json" .. bounds,
  "/v0/pipes/user_sessions.json",
  "/v0/pipes/event_properties.json" .. bounds,
  "/v0/pipes/event_properties.json?event_type=purchase",
}
local event = '{"event_id":"%s-%d-%d","user_id":"u%d","event_type":"tap","event_time":"2026-10-15 %02d:%02d:00",'
  .. '"app_version":"4.3.1","device_type":"phone","os_version":"18","country":"FR",'
  .. '"properties":{"key":"screen","value":"home"},"session_id":"s%d"}'
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init()
  sent = 0
  unique = tostring(os.time())
end

function request()
  sent = sent + 1
  if sent % 10 < 7 then
    return wrk.format("GET", calls[sent % 10 + 1], headers)
  end
  local lines = {}
  for line = 1, 10 do
    lines[line] = string.format(event, unique .. number, sent, line, sent % 1000, sent % 24, sent % 60, sent % 1000)
  end
  return wrk.format("POST", "/v0/events?name=app_events", headers, table.concat(lines, "\n"))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.1f, "p50_ms": %.1f, "p99_ms": %.1f, "max_ms": %.1f, '
      .. '"refused": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect, errors.read, errors.write, errors.timeout
  ))
end
