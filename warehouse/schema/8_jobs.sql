-- Work that is asked for over HTTP and done by Dagster, which alone has the rights: the API may insert a request and
-- read what became of it, nothing else. Nothing is stored in job_requests; its view writes the job as waiting.
create table if not exists {database}.job_requests
(
    job_id String comment 'Identifier that the asker chose, unique among jobs',
    kind Enum8('delete_data' = 1, 'truncate' = 2, 'replay' = 3) comment 'What to do',
    arguments String comment 'JSON object: delete_condition, datasource or condition, by the kind'
)
engine = Null
comment 'The way in for jobs: one row per job asked for, turned into a waiting row of jobs';

create table if not exists {database}.jobs
(
    job_id String comment 'Identifier that the asker chose',
    kind Enum8('delete_data' = 1, 'truncate' = 2, 'replay' = 3) comment 'What to do',
    arguments String comment 'JSON object: delete_condition, datasource or condition, by the kind',
    status Enum8('waiting' = 1, 'working' = 2, 'done' = 3, 'error' = 4) comment 'How far it is',
    created_at DateTime64(3, 'UTC') comment 'When it was asked for, in UTC',
    started_at Nullable(DateTime64(3, 'UTC')) comment 'When work on it first began, in UTC; null while it waits',
    cutoff Nullable(DateTime('UTC')) comment 'Rows that came after this second are not touched; null until it is known',
    updated_at DateTime64(6, 'UTC') comment 'When this state was reached, in UTC',
    rows_affected UInt64 comment 'Rows of app_events and app_events_quarantine that it removed or moved',
    statistics String comment 'JSON object: what it did, by place; empty until it is done',
    error String comment 'Why it failed, one sentence; empty for the others'
)
engine = ReplacingMergeTree(updated_at)
order by job_id
-- A condition names the person to forget: the record of it does not outlive its use.
ttl toDateTime(created_at) + interval 30 day
settings non_replicated_deduplication_window = 1000
comment 'One row per job after merging, its latest state: read it with FINAL';

create materialized view if not exists {database}.job_requested to {database}.jobs
sql security definer
as
select
    job_id,
    kind,
    arguments,
    'waiting' as status,
    now64(3, 'UTC') as created_at,
    now64(6, 'UTC') as updated_at
from {database}.job_requests;

-- Jobs, and imports of files as jobs of the kind import.
create or replace view {database}.job_states
sql security definer
as
select
    job_id,
    kind::String as kind,
    status::String as status,
    arguments,
    created_at,
    started_at,
    toDateTime64(updated_at, 3, 'UTC') as updated_at,
    rows_affected,
    0::UInt64 as lines,
    0::UInt64 as quarantined,
    statistics,
    error
from {database}.jobs final

union all

select
    content_id,
    'import',
    if(state = 'done', 'done', 'error'),
    '',
    started_at,
    started_at,
    finished_at,
    lines - quarantined,
    lines,
    quarantined,
    '',
    error
from {database}.landing_files final
where content_id != ''
-- The same content may lie there under several names; the first one brought it.
order by state, finished_at
limit 1 by content_id;

-- What became of one job, or of one import: of a file of the landing folder, once Dagster has begun with it, or of a
-- request. No row: there is none of that id, or its file still waits.
create or replace view {database}.job_results
sql security definer
as
with known as (select * from {database}.job_states where job_id = {job_id:String})

select * from known

union all

-- Of a request, and of a file whose import goes on, there are only lines.
select
    {job_id:String},
    'import',
    if(any(imports.source) = 'http', 'done', 'working'),
    '',
    min(imports.started_at) as began_at,
    began_at,
    max(imports.finished_at),
    sum(imports.kept),
    sum(imports.lines),
    sum(imports.quarantined),
    '',
    ''
from {database}.imports as imports
where import_id = {job_id:String} and import_id not in (select job_id from known)
having count() > 0;

-- The jobs and the imports of files of the last 48 hours, newest first.
create or replace view {database}.job_list
sql security definer
as
select *
from {database}.job_states
where created_at >= now64(3, 'UTC') - interval 48 hour
order by created_at desc, job_id asc
limit 100
